"""Atomic replacement of folders, and removal of what killed runs left."""

import os
import signal
from pathlib import Path

import pytest

from lada_ops.host import files
from lada_ops.host.disk import exchange, flush, remove_dead
from lada_ops.host.files import staged_folder


def write(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("1")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def save(folder: Path, name: str) -> None:
    with staged_folder(folder, overwrite=True) as stage:
        write(stage, name)


def killed(run) -> None:
    """Call `run` in a child process, which has to be killed by it."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill(*_) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_two_folders_exchange_their_names(tmp_path):
    if not exchange(write(tmp_path / "a", "1"), write(tmp_path / "b", "2")):
        pytest.skip("this system cannot")
    assert names(tmp_path) == ["a/2", "b/1"]


def test_exchange_with_what_is_not_there_changes_nothing(tmp_path):
    assert not exchange(write(tmp_path / "a", "1"), tmp_path / "b")
    assert names(tmp_path) == ["a/1"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_whole_folder_lies_under_the_name_when_the_exchange_is_killed(
    when, tmp_path, monkeypatch
):
    if not exchange(write(tmp_path / "x", "1"), write(tmp_path / "y", "2")):
        pytest.skip("this system cannot")

    def struck(stage, folder):
        if when == "after":
            exchange(stage, folder)
        kill()

    save(tmp_path / "out", "old")
    monkeypatch.setattr(files, "exchange", struck)
    killed(lambda: save(tmp_path / "out", "new"))
    assert names(tmp_path / "out") == [{"before": "old", "after": "new"}[when]]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    def run():
        with staged_folder(tmp_path / "out") as stage:
            write(stage, "half")
            kill()

    killed(run)
    assert [p for p in names(tmp_path) if p.endswith("half")]
    save(tmp_path / "out", "new")
    assert names(tmp_path) == ["out/new"]


def test_what_a_run_killed_while_it_cleaned_up_left_is_removed_by_the_next(tmp_path, monkeypatch):
    def run():
        unlink = os.unlink
        monkeypatch.setattr(os, "unlink", lambda *a, **k: (unlink(*a, **k), kill()))
        with staged_folder(tmp_path / "out") as stage:
            write(stage, "half")
            write(stage, "other")
            raise OSError

    killed(run)
    assert sorted(os.listdir(tmp_path)) != []
    save(tmp_path / "out", "new")
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_what_a_live_run_needs_is_kept(tmp_path):
    with staged_folder(tmp_path / "out", overwrite=True) as stage:
        write(stage, "first")
        save(tmp_path / "out", "second")
        assert names(stage) == ["first"]
    assert names(tmp_path) == ["out/first"]


def test_the_only_copy_is_no_leftover(tmp_path, monkeypatch):
    """A run killed between two renames (no exchange) holds the only copy of the old folder."""
    rename = os.rename

    def struck(a, b):
        rename(a, b)
        if Path(b).name == "old":
            kill()

    save(tmp_path / "out", "precious")
    with monkeypatch.context() as patched:
        patched.setattr(files, "exchange", lambda *_: False)
        patched.setattr(os, "rename", struck)
        killed(lambda: save(tmp_path / "out", "new"))
    remove_dead(tmp_path / "out")
    assert [p for p in names(tmp_path) if p.endswith("precious")]


def test_leftovers_of_other_names_are_not_ours(tmp_path):
    def run():
        with staged_folder(tmp_path / "out.v2") as stage:
            write(stage, "half")
            kill()

    killed(run)
    remove_dead(tmp_path / "out")
    assert [p for p in names(tmp_path) if p.endswith("half")]


def test_a_folder_without_write_permission_is_replaced_and_removed(tmp_path):
    save(tmp_path / "out", "old")
    inner = write(tmp_path / "out" / "inner", "old")
    inner.chmod(0o500)
    save(tmp_path / "out", "new")
    assert names(tmp_path) == ["out/new"]
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_files_and_folders_are_on_the_disk_before_they_have_the_name(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    write(tmp_path / "a", "1")
    write(tmp_path / "a" / "b", "2")
    flush(tmp_path / "a")
    assert {Path(p).name for p in flushed} == {"a", "1", "b", "2"}
    assert Path(flushed[-1]) == tmp_path / "a"
    flushed.clear()
    save(tmp_path / "out", "new")
    assert [Path(p).name for p in flushed] == ["new", "new", tmp_path.name]


def test_a_folder_filled_meanwhile_is_not_overwritten_unasked(tmp_path):
    with pytest.raises(FileExistsError, match="not empty"), staged_folder(tmp_path / "out"):
        write(tmp_path / "out", "theirs")
    assert names(tmp_path) == ["out/theirs"]


def test_a_link_keeps_its_place_and_its_target_is_replaced(tmp_path):
    write(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    save(tmp_path / "out", "new")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "real") == ["new"]
