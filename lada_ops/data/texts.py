"""Sentences to calibrate and to compare on, and batches of tokens made of them."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase


def read_utf8(path: Path, option: str | None = None) -> str:
    """The text of a file, plain or gzipped by its ``.gz``, without a byte order mark.

    option: the command line's that names the file, for the errors.

    Raises OSError where it cannot be read; ValueError where it is not UTF-8 or not gzipped.
    """
    where = f"{option}: {path}" if option else f"{path}"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, f"{where}: {error.strerror}") from error
    try:
        raw = gzip.decompress(raw) if path.suffix == ".gz" else raw
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = 1 + raw.count(b"\n", 0, error.start)
        raise ValueError(
            f"{where}, line {line}: byte {raw[error.start]:#04x} at {error.start}; expected UTF-8 "
            "text"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{where}: {error}; expected UTF-8 text, gzipped") from error


def read_lines(path: str | Path, option: str | None = None) -> list[str]:
    """The lines of a UTF-8 text file that are not blank.

    option: the command line's that names the file, for the errors.

    Raises ValueError if there is none, and as `read_utf8` does.
    """
    lines = [line.strip() for line in read_utf8(Path(path), option).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        where = f"{option}: {path}" if option else f"{path}"
        raise ValueError(f"{where} has no text; expected one sentence a line")
    return lines


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The named columns of each row of a tab-separated file, with its line number.

    Raises ValueError on a column that is missing or there twice, a row of another width, or an
    empty cell.
    """
    lines = read_utf8(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    header = lines[0].rstrip("\r").split("\t") if lines else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(
            f"{path}, line 1: no column {missing[0]!r} in {header}; expected {columns}"
        )
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise ValueError(f"{path}, line 1: column {twice[0]!r} twice in {header}; expected once")
    places = [header.index(name) for name in columns]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(cells)} columns; expected {len(header)}: {header}"
            )
        row = [cells[place].strip() for place in places]
        if not all(row):
            empty = columns[row.index("")]
            raise ValueError(f"{path}, line {number}: {empty} is empty; expected text")
        rows.append((number, row))
    if not rows:
        raise ValueError(f"{path}: no rows; expected at least one")
    return rows


def find_file(path: Path) -> Path:
    """`path`, or it with ``.gz`` after its name. Raises FileNotFoundError if there is neither."""
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path} is missing; expected it there, plain or as {path.name}.gz")


def python_prose() -> list[str]:
    """Some thousand English sentences that every Python carries: its language reference."""
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    sentences = re.split(r"(?<=[.!?:]) (?=[A-Z])", text)
    # headings, grammars and programs are left out: sentences are mostly letters
    return [
        sentence
        for sentence in dict.fromkeys(sentences)  # once each
        if 40 <= len(sentence) <= 300 and sum(map(str.isalpha, sentence)) > 0.75 * len(sentence)
    ]


def token_batches(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    batch_size: int = 32,
    max_length: int = 128,
) -> list[dict[str, Any]]:
    """The sentences as model inputs, padded per batch; sorted by length, so padded little."""
    if not sentences:
        raise ValueError("token_batches: sentences is empty; expected at least one")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # what transformers makes up for a folder without a vocabulary: every word is unknown
        raise ValueError(
            f"token_batches: the tokenizer has {len(tokenizer)} tokens, all special; "
            "expected one with a vocabulary"
        )
    ordered = sorted(sentences, key=len)
    return [
        dict(
            tokenizer(
                ordered[start : start + batch_size],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
        )
        for start in range(0, len(ordered), batch_size)
    ]
