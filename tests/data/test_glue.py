import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lada_ops.data.glue import TASKS, find_task, read_pairs, read_split
from tests.data.files import write, write_data
from tests.properties import FEW

SST2, MRPC, STSB = (TASKS[name] for name in ("sst2", "mrpc", "stsb"))
HEADER = "sentence\tlabel"


def test_texts_and_labels_are_those_of_the_file(tmp_path):
    write(
        tmp_path / "glue/sst2/dev.tsv", "label\textra\tsentence", ['1\tx\tsays " it', "0\ty\tü b"]
    )
    examples = read_split(tmp_path, SST2, "dev")
    assert examples.texts == [('says " it',), ("ü b",)]
    assert examples.labels == [1, 0]


def test_pairs_and_scores(tmp_path):
    examples = read_split(write_data(tmp_path), STSB, "dev")
    assert examples.texts[0] == ("under a cat", "the under a cat")
    assert examples.labels[:2] == [0.0, 1.0]
    assert read_split(tmp_path, MRPC, "dev").labels[:2] == [0, 1]


def test_compressed_files_and_files_of_other_names(tmp_path):
    folder = tmp_path / "glue/sst2"
    folder.mkdir(parents=True)
    with gzip.open(folder / "train.tsv.gz", "wt") as file:
        file.write("sentence\tlabel\na b\t1\n")
    write(folder / "other.tsv", HEADER, ["c\t0"])
    assert read_split(tmp_path, SST2, "train").texts == [("a b",)]
    assert read_split(tmp_path, SST2, "train", "other.tsv").texts == [("c",)]


def test_the_dev_set_of_mnli_is_the_matched_one(tmp_path):
    header = "sentence\tsentence2\tlabel"
    write(tmp_path / "glue/mnli/dev.tsv", header, ["a\tb\t0"])
    write(tmp_path / "glue/mnli/dev_matched_1k.tsv", header, ["c\td\t2"])
    assert read_split(tmp_path, TASKS["mnli"], "dev").texts == [("c", "d")]
    assert read_split(tmp_path, TASKS["mnli"], "dev", "dev.tsv").texts == [("a", "b")]


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        (HEADER, ["a\t1", "b\t2"], r"line 3: label '2'; expected a label of 0 to 1"),
        (HEADER, ["a\t1", "b\t-1"], "line 3: label '-1'"),
        (HEADER, ["a\tyes"], "line 2: label 'yes'"),
        (HEADER, ["a\t1", "b", "c\t1"], "line 3: 1 columns; expected 2"),
        (HEADER, ["a\t1\t2"], "line 2: 3 columns; expected 2"),
        (HEADER, ["a\t1", " \t1"], "line 3: sentence is empty"),
        (HEADER, ["a\t1", "", "b\t1"], "line 3: 1 columns"),
        (HEADER, ["a\t0_1"], "line 2: label '0_1'"),
        (HEADER, ["a\t1" + "0" * 5000], "line 2: label '1000"),
        (HEADER, [], "no rows"),
        ("label\tsentence\tlabel", ["1\ta\t0"], "line 1: column 'label' twice in"),
        ("text\tlabel", ["a\t1"], r"line 1: no column 'sentence' in \['text', 'label'\]"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(header, lines, message, tmp_path):
    write(tmp_path / "glue/sst2/dev.tsv", header, lines)
    with pytest.raises(ValueError, match=rf"dev\.tsv.*{message}"):
        read_split(tmp_path, SST2, "dev")


@pytest.mark.parametrize("score", ["5.1", "-0.1", "nan", "inf", "x"])
def test_scores_are_of_0_to_5(score, tmp_path):
    lines = ["a\tb\t5.0", f"a\tb\t{score}"]
    write(tmp_path / "glue/stsb/dev.tsv", "sentence\tsentence2\tlabel", lines)
    with pytest.raises(ValueError, match=f"line 3: label '{score}'; expected a score of 0 to 5"):
        read_split(tmp_path, STSB, "dev")


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "glue/sst2/dev.tsv"
    write(path, HEADER, ["a\t1"])
    path.write_bytes(path.read_bytes() + b"\xff\xfe\t1\n")
    with pytest.raises(ValueError, match="expected UTF-8 text"):
        read_split(tmp_path, SST2, "dev")


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


PIECES = ["a", "1", "0", "2", "\t", "\n", "\r", " ", '"', "\0", "\u2028", "\ufeff", "_", "-", "nan"]


@FEW
@given(
    rows=st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), max_size=4),
    rest=st.binary(max_size=3),
)
def test_what_is_read_is_what_the_file_says(tmp_path, rows, rest):
    path = tmp_path / "glue/sst2/dev.tsv"
    write(path, HEADER, ["a\t1", *rows])
    path.write_bytes(path.read_bytes() + rest)
    try:
        examples = read_split(tmp_path, SST2, "dev")
    except ValueError as error:
        message = str(error)
    else:
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
        cells = [[cell.strip() for cell in line.split("\t")] for line in lines[1:]]
        assert examples.texts == [(text,) for text, _ in cells]
        assert examples.labels == [int(label) for _, label in cells]
        return
    assert message.startswith(str(path))


@pytest.mark.parametrize("damage", ["cut", "changed", "plain"])
def test_a_compressed_file_that_is_damaged(damage, tmp_path):
    path = tmp_path / "glue/sst2/dev.tsv.gz"
    path.parent.mkdir(parents=True)
    whole = gzip.compress(b"sentence\tlabel\n" + b"a\t1\n" * 999)
    damaged = {"cut": whole[:-9], "changed": whole[:12] + b"\xff" * 9, "plain": b"a\t1\n"}
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"dev\.tsv\.gz: .*expected UTF-8 text"):
        read_split(tmp_path, SST2, "dev")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"glue/sst2/train\.tsv is missing"):
        read_split(tmp_path, SST2, "train")


def test_tasks_have_names():
    assert find_task("mnli").num_labels == 3
    assert find_task("stsb").num_labels == 1
    with pytest.raises(ValueError, match="task 'squad'; expected one of sst2, cola"):
        find_task("squad")
