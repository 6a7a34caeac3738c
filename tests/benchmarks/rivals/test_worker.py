"""Protocol between the parent and a contestant's process, over a real process."""

import os
import time

import numpy as np
import pytest

from benchmarks.rivals import worker
from benchmarks.rivals.remote import Worker
from benchmarks.rivals.setup import NotMeasured
from tests.benchmarks.rivals.builders import setup, spinning

IDS = np.arange(6).reshape(2, 3)


@pytest.fixture
def ids(tmp_path):
    path = tmp_path / "ids.npy"
    np.save(path, IDS)
    return path


def test_a_worker_binds_times_and_returns_its_output(ids):
    with Worker(setup("doubles")) as remote:
        remote.bind(ids)
        seconds = remote.time(3, warm=1)
        np.testing.assert_array_equal(remote.output(), IDS * 2)
    assert len(seconds) == 3
    assert min(seconds) > 0


def test_the_output_of_libraries_does_not_mix_with_the_answers(ids):
    with Worker(setup("chatters")) as remote:
        remote.bind(ids)
        assert len(remote.time(1)) == 1


def test_a_missing_package_is_named():
    with pytest.raises(NotMeasured, match=r"^a_package_that_nobody_has is not installed$"):
        Worker(setup("is_missing"))


def test_a_failed_call_is_reported_and_the_process_goes_on(ids):
    with Worker(setup("raises_when_called")) as remote:
        remote.bind(ids)
        for _ in range(2):
            with pytest.raises(NotMeasured, match=r"^ValueError: odd shape$"):
                remote.time(1)


def test_a_process_that_dies_is_reported_with_its_last_line():
    with pytest.raises(NotMeasured, match=r"exit status 3\. out of luck"):
        Worker(setup("dies"))


def test_a_worker_runs_with_its_number_of_threads(ids):
    with Worker(setup("tells_threads", threads=3)) as remote:
        remote.bind(ids)
        remote.time(1)
        assert remote.output().tolist() == [3, 3]


def test_a_waiting_worker_takes_no_cpu():
    with Worker(setup("doubles")) as remote:
        stat = f"/proc/{remote.pid}/stat"

        def ticks():
            with open(stat) as file:
                return sum(int(field) for field in file.read().rsplit(")", 1)[1].split()[11:13])

        before = ticks()
        time.sleep(0.3)
        assert ticks() - before <= 1


def test_threads_that_do_not_stop_are_refused(monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 0.1)
    stop = spinning()
    try:
        with pytest.raises(NotMeasured, match="still run"):
            worker.wait_until_idle()
    finally:
        stop()


def test_closing_ends_the_process():
    remote = Worker(setup("doubles"))
    remote.close()
    with pytest.raises(ProcessLookupError):
        os.kill(remote.pid, 0)
