"""The protocol between the parent and a contestant's process, over a real one."""

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


def test_it_binds_times_and_hands_back_its_output(ids):
    with Worker(setup("doubles")) as remote:
        remote.bind(ids)
        seconds = remote.time(3, warm=1)
        np.testing.assert_array_equal(remote.output(), IDS * 2)
    assert len(seconds) == 3
    assert min(seconds) > 0


def test_what_libraries_print_does_not_get_between_the_answers(ids):
    with Worker(setup("chatters")) as remote:
        remote.bind(ids)
        assert len(remote.time(1)) == 1


def test_a_missing_package_is_named():
    with pytest.raises(NotMeasured, match=r"^a_package_that_nobody_has is not installed$"):
        Worker(setup("is_missing"))


def test_a_call_that_fails_is_told_in_a_line_and_the_process_goes_on(ids):
    with Worker(setup("raises_when_called")) as remote:
        remote.bind(ids)
        for _ in range(2):
            with pytest.raises(NotMeasured, match=r"^ValueError: odd shape$"):
                remote.time(1)


def test_a_process_that_dies_leaves_its_last_words():
    with pytest.raises(NotMeasured, match=r"exit status 3\. out of luck"):
        Worker(setup("dies"))


def test_it_runs_with_the_threads_it_is_given(ids):
    with Worker(setup("tells_threads", threads=3)) as remote:
        remote.bind(ids)
        remote.time(1)
        assert remote.output().tolist() == [3, 3]


def test_it_takes_no_cpu_while_it_waits():
    with Worker(setup("doubles")) as remote:
        stat = f"/proc/{remote.pid}/stat"

        def ticks():
            with open(stat) as file:
                return sum(int(field) for field in file.read().rsplit(")", 1)[1].split()[11:13])

        before = ticks()
        time.sleep(0.3)
        assert ticks() - before <= 1


def test_threads_that_never_stop_are_refused(monkeypatch):
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
