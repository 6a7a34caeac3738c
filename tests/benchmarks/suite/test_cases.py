"""What the GPU suite measures, and in which order."""

import itertools
from collections import Counter

import pytest

from benchmarks.suite.cases import Case, all_cases, goals, tiny_cases
from benchmarks.suite.goals import GOALS

STEMS = {"low_rank_linear", "block_sparse_linear", "sparse_low_rank_linear", "low_rank_ffn"}
CASES = all_cases()
TOKENS = {16, 128, 512, 2048, 8192, 32768, 65536}


def test_each_case_is_there_once():
    assert max(Counter(CASES).values()) == 1


def test_keys_tell_the_cases_of_a_kernel_apart():
    assert max(Counter((case.stem, case.key) for case in CASES).values()) == 1


def test_the_goals_come_first():
    wanted = list(goals())
    assert wanted == CASES[: len(wanted)]


def test_every_goal_has_cases():
    for goal in GOALS:
        assert any(goal.stem == c.stem and goal.about(vars(c)) for c in goals()), goal.name


def test_kernels_take_turns():
    assert all(a.stem != b.stem for a, b in itertools.pairwise(CASES[1:20]))


@pytest.mark.parametrize("hidden", [768, 1024])
def test_low_rank_is_measured_over_the_whole_grid(hidden):
    want = itertools.product(TOKENS, {32, 64, 96, 128, 192, 256})
    for shape in ((hidden, 4 * hidden), (4 * hidden, hidden), (hidden, hidden)):
        for epilogue in ("plain", "gelu" if shape[1] > hidden else "norm"):
            got = {
                (c.tokens, c.rank)
                for c in CASES
                if c.stem == "low_rank_linear"
                and (c.in_features, c.out_features, c.epilogue) == (*shape, epilogue)
            }
            assert got >= set(want)


@pytest.mark.parametrize("hidden", [768, 1024])
def test_block_sparse_is_measured_over_the_whole_grid(hidden):
    blocks = {(128, 16), (64, 16), (64, 32), (32, 32), (16, 16)}
    want = set(itertools.product(TOKENS, blocks, {0.05, 0.1, 0.2, 0.3, 0.5}))
    for k, n in ((hidden, 4 * hidden), (4 * hidden, hidden), (hidden, hidden)):
        got = {
            (c.tokens, c.block, c.density)
            for c in CASES
            if c.stem == "block_sparse_linear" and (c.in_features, c.out_features) == (k, n)
        }
        assert got >= want


@pytest.mark.parametrize("hidden", [768, 1024])
def test_query_key_and_value_are_measured_in_one(hidden):
    got = {
        (c.tokens, c.rank)
        for c in CASES
        if (c.in_features, c.out_features, c.groups) == (hidden, 3 * hidden, 3)
    }
    assert got == set(itertools.product(TOKENS, {32, 64, 96, 128, 192, 256}))


def test_every_kernel_but_the_feed_forward_is_also_trained():
    assert {case.stem for case in CASES if case.backward} == STEMS - {"low_rank_ffn"}


def test_the_tiny_cases_take_every_path_of_the_large_ones():
    def path(case):
        epilogue = case.epilogue if case.stem == "low_rank_linear" else ""
        return case.stem, case.backward, case.groups, epilogue

    assert {path(case) for case in CASES} == {path(case) for case in tiny_cases()}


def test_2to4_is_measured_beside_about_the_same_weight():
    assert Case("low_rank_linear", 16, 768, 3072, rank=128).beside_2to4
    assert not Case("low_rank_linear", 16, 768, 3072, rank=64).beside_2to4
    assert not Case("low_rank_ffn", 16, 768, 768, rank=128, hidden=3072).beside_2to4


@pytest.mark.parametrize(
    ("case", "key"),
    [
        (Case("low_rank_linear", 16, 768, 3072, "gelu", 64), "768-3072 M=16 r64 gelu"),
        (
            Case("low_rank_linear", 16, 768, 2304, "plain", 64, groups=3),
            "768-2304 M=16 r64x3 plain",
        ),
        (
            Case("sparse_low_rank_linear", 16, 768, 768, "norm", 64, (128, 16), 0.05),
            "768-768 M=16 r64+128x16 d05 norm",
        ),
        (
            Case("low_rank_ffn", 16, 768, 768, "norm", 64, hidden=3072),
            "768-3072-768 M=16 r64 norm",
        ),
        (
            Case("block_sparse_linear", 1, 768, 768, "gelu", 0, (16, 16), 0.5, backward=True),
            "768-768 M=1 16x16 d50 gelu backward",
        ),
    ],
)
def test_a_key_says_it_all(case, key):
    assert case.key == key
