"""Text files of users, refused with file and line where they are no UTF-8."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path


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
