"""Sentences to calibrate and to compare on, and batches of tokens made of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .glue import TASKS, read_examples
from .utf8 import read_utf8


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences and how alike people found them: STS-B's scores, 0 to 5."""

    first: Sequence[str]
    second: Sequence[str]
    scores: Sequence[float]


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


def read_pairs(path: str | Path) -> SentencePairs:
    """Pairs from a tab-separated file with the columns sentence, sentence2 and label.

    Raises ValueError with file and line where the columns or the scores are not that.
    """
    examples = read_examples(Path(path), TASKS["stsb"])
    first, second = zip(*examples.texts, strict=True)
    return SentencePairs(first, second, examples.labels)


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
