"""Text files of users (UTF-8, lines, TSV), built-in sample sentences, and batches of tokens."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 128
"""Tokens of a text, by default; longer texts are truncated."""


def read_utf8(path: Path, option: str | None = None) -> str:
    """Text of a UTF-8 file, without a byte order mark; a ``.gz`` file is decompressed.

    option: command-line option that named the file, for the error messages.

    Raises OSError where it cannot be read; ValueError, with the line, where it is not UTF-8, or
    where a ``.gz`` file is not gzipped.
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
    """Non-blank lines of a UTF-8 text file, stripped.

    option: command-line option that named the file, for the error messages.

    Raises ValueError if there are none, and as `read_utf8` does.
    """
    lines = [line.strip() for line in read_utf8(Path(path), option).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        where = f"{option}: {path}" if option else f"{path}"
        raise ValueError(f"{where} has no text; expected one sentence a line")
    return lines


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Rows of a TSV file: for each its line number and the cells of `columns`, stripped.

    The file is UTF-8, with a header and without quoting.

    Raises ValueError, with file and line, on a column that is missing or duplicate, a row with
    another number of cells than the header, or an empty cell; and as `read_utf8` does.
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
    doubled = [name for name in columns if header.count(name) > 1]
    if doubled:
        raise ValueError(f"{path}, line 1: column {doubled[0]!r} twice in {header}; expected once")
    indices = [header.index(name) for name in columns]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(cells)} columns; expected {len(header)}: {header}"
            )
        row = [cells[index].strip() for index in indices]
        if not all(row):
            empty = columns[row.index("")]
            raise ValueError(f"{path}, line {number}: {empty} is empty; expected text")
        rows.append((number, row))
    if not rows:
        raise ValueError(f"{path}: no rows; expected at least one")
    return rows


def find_file(path: Path) -> Path:
    """Path of the file, plain or gzipped (``.gz``). Raises FileNotFoundError if neither exists."""
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path} is missing; expected it there, plain or as {path.name}.gz")


def python_prose() -> list[str]:
    """Sample of a few thousand English sentences: the language reference that Python ships."""
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", " ".join(topics[name] for name in sorted(topics)))
    sentences = re.split(r"(?<=[.!?:]) (?=[A-Z])", text)
    # mostly letters: leaves out headings, grammars and programs
    return [
        sentence
        for sentence in dict.fromkeys(sentences)
        if 40 <= len(sentence) <= 300 and sum(map(str.isalpha, sentence)) > 0.75 * len(sentence)
    ]


def token_batches(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    batch_size: int = 32,
    max_length: int = MAX_LENGTH,
) -> list[dict[str, Any]]:
    """Model inputs of the sentences, sorted by length, in batches padded to their longest.

    Raises ValueError on no sentences, or a tokenizer without a vocabulary.
    """
    if not sentences:
        raise ValueError("token_batches: sentences is empty; expected at least one")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers makes such a tokenizer for a folder without a vocabulary
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
