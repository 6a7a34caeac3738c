"""Cases of the GPU suite, and their order."""

import itertools
from collections import Counter

import pytest

from benchmarks.suite.cases import SuiteCase, all_cases, goals, tiny_cases
from benchmarks.suite.goals import GOALS

STEMS = {"low_rank_linear", "block_sparse_linear", "sparse_low_rank_linear", "low_rank_ffn"}
CASES = all_cases()
TOKENS = {16, 128, 512, 2048, 8192, 32768, 65536}


def test_each_case_is_there_once():
    assert max(Counter(CASES).values()) == 1


def test_row_keys_of_a_kernel_are_distinct():
    assert max(Counter((case.stem, case.row_key) for case in CASES).values()) == 1


def test_the_goals_come_first():
    wanted = list(goals())
    assert wanted == CASES[: len(wanted)]


def test_every_goal_has_cases():
    for goal in GOALS:
        assert any(goal.stem == c.stem and goal.about(c.to_dict()) for c in goals()), goal.name


def test_kernels_alternate():
    assert all(a.stem != b.stem for a, b in itertools.pairwise(CASES[1:20]))


@pytest.mark.parametrize("hidden", [768, 1024])
def test_low_rank_is_measured_over_the_whole_grid(hidden):
    want = itertools.product(TOKENS, {32, 64, 96, 128, 192, 256})
    for shape in ((hidden, 4 * hidden), (4 * hidden, hidden), (hidden, hidden)):
        for epilogue in ("plain", "fused" if shape[1] > hidden else "norm"):
            got = {
                (c.tokens, c.parts.rank)
                for c in CASES
                if c.stem == "low_rank_linear" and (c.k, c.n, c.epilogue) == (*shape, epilogue)
            }
            assert got >= set(want)


@pytest.mark.parametrize("hidden", [768, 1024])
def test_block_sparse_is_measured_over_the_whole_grid(hidden):
    blocks = {(128, 16), (64, 16), (64, 32), (32, 32), (16, 16)}
    want = set(itertools.product(TOKENS, blocks, {5, 10, 20, 30, 50}))
    for k, n in ((hidden, 4 * hidden), (4 * hidden, hidden), (hidden, hidden)):
        got = {
            (c.tokens, (c.parts.rows, c.parts.cols), c.parts.percent)
            for c in CASES
            if c.stem == "block_sparse_linear" and (c.k, c.n) == (k, n)
        }
        assert got >= want


@pytest.mark.parametrize("hidden", [768, 1024])
def test_merged_query_key_and_value_are_measured(hidden):
    got = {
        (c.tokens, c.parts.rank)
        for c in CASES
        if (c.k, c.n, c.parts.groups) == (hidden, 3 * hidden, 3)
    }
    assert got == set(itertools.product(TOKENS, {32, 64, 96, 128, 192, 256}))


def test_every_kernel_but_the_feed_forward_is_also_trained():
    assert {case.stem for case in CASES if case.backward} == STEMS - {"low_rank_ffn"}


def test_tiny_cases_cover_the_kinds_of_all_cases():
    def kind(case):
        epilogue = case.epilogue if case.stem == "low_rank_linear" else ""
        return case.stem, case.backward, case.parts.groups, epilogue

    assert {kind(case) for case in CASES} == {kind(case) for case in tiny_cases()}


def test_2to4_is_measured_beside_about_the_same_weight():
    assert SuiteCase(768, 3072, "r128").beside_2to4
    assert not SuiteCase(768, 3072, "r64").beside_2to4
    assert not SuiteCase(768, 768, "r128-3072-r128").beside_2to4


@pytest.mark.parametrize(
    ("case", "key"),
    [
        (SuiteCase(768, 3072, "r64", "fused", 16), "768-3072 M=16 r64 gelu"),
        (SuiteCase(768, 2304, "r64x3", "plain", 16), "768-2304 M=16 r64x3 plain"),
        (SuiteCase(768, 768, "r64+128x16-d05", "norm", 16), "768-768 M=16 r64+128x16 d05 norm"),
        (SuiteCase(768, 768, "r64-3072-r64", "norm", 16), "768-3072-768 M=16 r64 norm"),
        (
            SuiteCase(768, 768, "16x16-d50", "fused", 1, backward=True),
            "768-768 M=1 16x16 d50 gelu backward",
        ),
    ],
)
def test_row_keys_are_those_of_result_files(case, key):
    assert case.row_key == key


def test_fields_are_those_of_result_files():
    assert SuiteCase(768, 768, "r64+128x16-d05", "fused", 16).to_dict() == {
        "stem": "sparse_low_rank_linear",
        "tokens": 16,
        "in_features": 768,
        "out_features": 768,
        "epilogue": "gelu",
        "rank": 64,
        "block": (128, 16),
        "density": 0.05,
        "hidden": 0,
        "groups": 1,
        "backward": False,
    }
