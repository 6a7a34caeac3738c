"""Contestants, and their choice by patterns."""

import importlib

import pytest

from benchmarks.rivals.contestants import CONTESTANTS, EAGER, chosen


def names(*patterns):
    return [contestant.name for contestant in chosen(patterns)]


def test_names_are_distinct():
    assert len({contestant.name for contestant in CONTESTANTS}) == len(CONTESTANTS)


@pytest.mark.parametrize("build", sorted({contestant.build for contestant in CONTESTANTS}))
def test_every_contestant_can_be_built(build):
    module, function = build.split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_eager_always_takes_part():
    assert names("openvino bf16") == ["eager", "openvino bf16"]


def test_patterns_choose_by_name():
    assert names("onnxruntime int8*5x", "lada engine int8 block_sparse 10x") == [
        "eager",
        "onnxruntime int8 low_rank 2.5x",
        "onnxruntime int8 low_rank 5x",
        "lada engine int8 block_sparse 10x",
    ]


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(ValueError, match=r"'tensorflow'.*eager, eager bf16, torch\.compile"):
        chosen(["*", "tensorflow"])


def test_rivals_run_the_same_weights_as_ours():
    def variants(runtime):
        return {c.variant for c in CONTESTANTS if c.runtime == runtime}

    ours = {variant for variant in variants("lada engine fp32") if "sparse" not in variant}
    assert ours == {"dense", "low_rank 2.5x", "low_rank 5x", "low_rank 10x"}
    for rival in ("onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino bf16"):
        assert variants(rival) == ours


def test_only_ours_are_ours():
    assert not EAGER.ours
    assert {c.runtime.split()[0] for c in CONTESTANTS if c.ours} == {"lada"}
