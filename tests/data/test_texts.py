import gzip

import pytest
from transformers import AutoTokenizer

from lada_ops.data.texts import python_prose, read_lines, read_utf8, token_batches
from tests.tiny_model import write_tiny_model


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


def test_lines_that_are_blank_are_left_out(tmp_path):
    (tmp_path / "t.txt").write_text("a dog\n\n   \n the cat \n", encoding="utf-8")
    assert read_lines(tmp_path / "t.txt") == ["a dog", "the cat"]


def test_file_without_text_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="no text"):
        read_lines(tmp_path / "t.txt")


def test_python_prose_is_sentences_enough_to_calibrate_on():
    sentences = python_prose()
    assert len(sentences) > 500
    assert all(40 <= len(s) <= 300 and "\n" not in s for s in sentences)
    assert sentences == python_prose()


def test_batches_hold_every_sentence_once_with_little_padding(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path))
    sentences = ["the dog " * n for n in (9, 1, 8, 2)]
    batches = token_batches(tokenizer, sentences, batch_size=2)
    assert [b["attention_mask"].sum(1).tolist() for b in batches] == [[4, 6], [18, 20]]


def test_tokenizer_without_a_vocabulary_is_refused(tmp_path):
    folder = write_tiny_model(tmp_path)
    for name in ("vocab.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="tokens, all special"):
        token_batches(AutoTokenizer.from_pretrained(folder), ["the dog"])


def test_no_sentences_are_refused(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(write_tiny_model(tmp_path))
    with pytest.raises(ValueError, match="sentences is empty"):
        token_batches(tokenizer, [])
