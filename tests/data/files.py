"""Data folder like a user's, in words of the tiny model's vocabulary."""

from pathlib import Path

GOOD = ("the old dog sleeps", 1)
BAD = ("under a cat", 0)


def write_data(folder: Path, rows: int = 24) -> Path:
    """Write SST-2 (train, dev, attacked texts), MRPC (dev) and STS-B (dev) to the folder."""
    single = [GOOD if i % 2 else BAD for i in range(rows)]
    lines = [f"{text} {'abc'[i % 3]}\t{label}" for i, (text, label) in enumerate(single)]
    write(folder / "glue/sst2/train.tsv", "sentence\tlabel", lines)
    write(folder / "glue/sst2/dev.tsv", "sentence\tlabel", lines[:8])
    pairs = [f"{text}\tthe {text}\t{label}" for text, label in single[:8]]
    write(folder / "glue/mrpc/dev.tsv", "sentence\tsentence2\tlabel", pairs)
    write(folder / "glue/stsb/dev.tsv", "sentence\tsentence2\tlabel", pairs)
    write(
        folder / "robust/textfooler/mr.tsv",
        "sentence\tlabel\torig_sentence\tattack\torig_in_sst2_train",
        ["the dog\t1\tthe old dog\tx\t0", "a cat\t0\tunder a cat\tx\t0", "seen\t1\tseen\tx\t1"],
    )
    return folder


def write(path: Path, header: str, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
