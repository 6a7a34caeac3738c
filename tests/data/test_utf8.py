import gzip

import pytest

from lada_ops.data.utf8 import read_utf8


def test_text_is_read_as_it_stands_without_its_mark(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbfa\r\n\xc3\xbc\n")
    assert read_utf8(tmp_path / "t.txt") == "a\r\nü\n"


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz"])
def test_bytes_that_are_no_text_are_named_by_line_and_place(name, tmp_path):
    raw = b"a\nb\nc\xff\n"
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    with pytest.raises(ValueError, match=rf"--it: .*/{name}, line 3: byte 0xff at 5; expected UTF"):
        read_utf8(tmp_path / name, "--it")


def test_a_file_that_is_not_there_is_named_with_its_option(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--it: .*/none: No such file"):
        read_utf8(tmp_path / "none", "--it")
