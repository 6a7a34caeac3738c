import pytest
from transformers import AutoTokenizer

from lada_ops.data.texts import python_prose, read_lines, read_pairs, token_batches
from tests.tiny_model import write_tiny_model


def test_lines_that_are_blank_are_left_out(tmp_path):
    (tmp_path / "t.txt").write_text("a dog\n\n   \n the cat \n", encoding="utf-8")
    assert read_lines(tmp_path / "t.txt") == ["a dog", "the cat"]


def test_file_without_text_is_refused(tmp_path):
    (tmp_path / "t.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="no text"):
        read_lines(tmp_path / "t.txt")


def test_pairs_keep_quotes_and_order(tmp_path):
    (tmp_path / "t.tsv").write_text('sentence\tsentence2\tlabel\n"a\tb"\t2.5\nc\td\t0.0\n')
    pairs = read_pairs(tmp_path / "t.tsv")
    assert list(zip(pairs.first, pairs.second, pairs.scores, strict=True)) == [
        ('"a', 'b"', 2.5),
        ("c", "d", 0.0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column 'sentence'"),
        ("sentence\tlabel\na\t1\n", "line 1: no column 'sentence2'"),
        ("sentence\tsentence2\tlabel\na\tb\n", "line 2: 2 columns; expected 3"),
        ("sentence\tsentence2\tlabel\na\tb\tx\n", "line 2: label 'x'"),
    ],
)
def test_pairs_of_another_form_are_refused(text, message, tmp_path):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(ValueError, match=rf"t\.tsv, {message}"):
        read_pairs(tmp_path / "t.tsv")


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
