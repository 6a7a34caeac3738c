"""The tuner with a fake launcher, clock and gate."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from lada_kernels import low_rank_linear
from lada_kernels.table import Measured, Table, TableError
from lada_kernels.tuning import TRITON
from lada_kernels.variants import TileConfig, Variant
from lada_ops.host.environment import environment
from lada_ops.ops.reference import low_rank_linear_ref
from lada_ops.tune import Bench, Case, NoGpu, tune
from lada_ops.tune import tuner as module
from lada_ops.tune.search import Space
from tests.latency.fakes import FakeClock

CASE = Case(16, 16, "r32", "plain", 16, "float32")
OTHER = Case(16, 32, "r32", "plain", 16, "float32")
START, FASTER, BEST = (TileConfig(size, 16, 16, 4, 2) for size in (16, 32, 64))
WORST = TileConfig(128, 16, 16, 4, 2)
SECONDS = {START: 8e-6, FASTER: 4e-6, BEST: 2e-6, WORST: 9e-6, None: 5e-6}


class Launcher:
    """Fake launcher with a time per tiles; wrong or raising for the tiles in its sets."""

    def __init__(self, clock):
        self.clock = clock
        self.seconds = dict(SECONDS)
        self.wrong, self.broken, self.wrong_calls = set(), set(), set()
        self.launched = []

    def __call__(self, x, u, v, epilogue, variant):
        tiles = variant.tiles
        self.clock.spend(self.seconds[tiles])
        self.launched.append(variant)
        if tiles in self.broken:
            raise RuntimeError("out of\nresources")
        y = low_rank_linear_ref(x, u, v, epilogue.bias, epilogue.activation)
        count = self.launched.count(variant)
        return y + 1 if tiles in self.wrong or (tiles, count) in self.wrong_calls else y


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def launcher(clock, monkeypatch):
    fake = Launcher(clock)
    space = Space(START, {"BLOCK_M": (16, 32, 64, 128)})
    monkeypatch.setattr(
        module, "variants_of", lambda case: {"two_launches": None, "one_launch": space}
    )
    monkeypatch.setattr(low_rank_linear, "low_rank_linear_fwd", fake)
    return fake


@pytest.fixture
def bench(clock):
    return Bench(torch.device("cpu"), clock, l2_bytes=1, rounds=2, name="FAKE")


def path_in(folder):
    return folder / "low_rank_linear" / Table.name("FAKE", TRITON)


def table_in(folder):
    return Table.read(path_in(folder), "low_rank_linear", "FAKE", TRITON)


def test_an_entry_holds_every_variant_at_its_best_and_dense(launcher, bench, tmp_path):
    summary = tune([CASE], tmp_path, bench=bench)
    entry = table_in(tmp_path).entries[CASE.key][16]
    assert entry.variants == {
        "dense": Measured(1e6),  # what the clock says of a call that spends nothing
        "two_launches": Measured(5.0),
        "one_launch": Measured(2.0, BEST),
    }
    assert summary.measured == {str(CASE): {"dense": 1e6, "two_launches": 5.0, "one_launch": 2.0}}


def test_the_table_has_the_environment(launcher, bench, tmp_path):
    tune([CASE], tmp_path, bench=bench)
    table = table_in(tmp_path)
    assert table.environments == [environment()]
    assert table.entries[CASE.key][16].environment == 0


def test_a_dependent_launch_is_taken_where_it_is_faster(launcher, bench, tmp_path):
    best = replace(BEST, pdl=True)
    launcher.seconds |= {replace(tiles, pdl=True): 8e-6 for tiles in (START, FASTER, WORST)}
    launcher.seconds[best] = 1e-6
    tune([CASE], tmp_path, bench=replace(bench, pdl=True))
    assert table_in(tmp_path).entries[CASE.key][16].variants["one_launch"] == Measured(1.0, best)


def test_dependent_launches_are_not_tried_where_there_are_none(launcher, bench, tmp_path):
    tune([CASE], tmp_path, bench=bench)
    assert not any(variant.pdl for variant in launcher.launched)


def test_wrong_tiles_are_not_taken_however_fast(launcher, bench, tmp_path):
    launcher.wrong = {BEST}
    tune([CASE], tmp_path, bench=bench)
    assert table_in(tmp_path).entries[CASE.key][16].variants["one_launch"].tiles == FASTER


@pytest.mark.parametrize("call", [1, 3], ids=["before timing", "while timed"])
def test_tiles_that_are_wrong_but_once_are_not_taken(call, launcher, bench, tmp_path):
    launcher.wrong_calls = {(BEST, call)}
    tune([CASE], tmp_path, bench=bench)
    assert table_in(tmp_path).entries[CASE.key][16].variants["one_launch"].tiles == FASTER


def test_tiles_that_do_not_run_are_passed_over(launcher, bench, tmp_path):
    launcher.broken = {START}
    tune([CASE], tmp_path, bench=bench)
    assert table_in(tmp_path).entries[CASE.key][16].variants["one_launch"].tiles == BEST


def test_tiles_with_faults_are_not_run(launcher, bench, tmp_path):
    def faults(case, variant):
        assert case == CASE
        assert variant.name == "one_launch"
        return ["it spills"] if variant.tiles == FASTER else []

    tune([CASE], tmp_path, bench=replace(bench, faults=faults))
    assert Variant("one_launch", FASTER) not in launcher.launched
    assert table_in(tmp_path).entries[CASE.key][16].variants["one_launch"].tiles == START


def test_a_variant_without_tiles_that_run_is_left_out_and_reported(launcher, bench, tmp_path):
    launcher.broken = {START, FASTER, BEST, WORST}
    lines = []
    tune([CASE], tmp_path, bench=bench, say=lines.append)
    assert set(table_in(tmp_path).entries[CASE.key][16].variants) == {"dense", "two_launches"}
    assert lines[0] == f"{CASE}: one_launch does not run: RuntimeError: out of resources"


def test_a_case_without_a_variant_fails_and_others_go_on(launcher, bench, monkeypatch, tmp_path):
    space = Space(START, {})
    monkeypatch.setattr(module, "variants_of", lambda case: {"one_launch": space})
    bench = replace(bench, faults=lambda case, variant: ["bad"] * (case == CASE))
    summary = tune([CASE, OTHER], tmp_path, bench=bench)
    assert summary.failed == {str(CASE): "RuntimeError: no variant of ours runs"}
    assert list(table_in(tmp_path).entries) == [OTHER.key]


def test_a_wrong_variant_of_torch_fails_the_case(launcher, bench, tmp_path):
    launcher.wrong = {None}
    summary = tune([CASE], tmp_path, bench=bench)
    assert "WrongOutput: 'two_launches'" in summary.failed[str(CASE)]
    assert not path_in(tmp_path).exists()


def test_memory_is_poisoned_before_each_tile_is_timed(launcher, bench, monkeypatch, tmp_path):
    """Outputs with gaps must not pass on the memory of the previous, correct output."""
    poisoned = []
    monkeypatch.setattr(Bench, "poison", lambda bench, output_bytes: poisoned.append(output_bytes))
    tune([CASE], tmp_path, bench=bench)
    assert poisoned == [16 * 16 * 4] * (len(SECONDS) - 1)


def test_cases_in_the_table_are_skipped(launcher, bench, tmp_path):
    tune([CASE], tmp_path, bench=bench)
    before = path_in(tmp_path).read_bytes()
    launcher.launched.clear()
    summary = tune([CASE], tmp_path, bench=bench)
    assert (summary.skipped, summary.measured, launcher.launched) == (1, {}, [])
    assert path_in(tmp_path).read_bytes() == before


def test_another_number_of_tokens_is_another_entry(launcher, bench, tmp_path):
    more = Case(16, 16, "r32", "plain", 32, "float32")
    tune([CASE], tmp_path, bench=bench)
    tune([CASE, more], tmp_path, bench=bench)
    assert set(table_in(tmp_path).entries[CASE.key]) == {16, 32}


def test_every_entry_is_on_disk_before_the_next_begins(launcher, bench, monkeypatch, tmp_path):
    def interrupt(case):
        if case == OTHER:
            raise KeyboardInterrupt
        return {"two_launches": None}

    monkeypatch.setattr(module, "variants_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tune([CASE, OTHER], tmp_path, bench=bench)
    assert list(table_in(tmp_path).entries) == [CASE.key]


def test_a_case_that_the_budget_cuts_short_is_not_written(launcher, bench, tmp_path):
    ticks = itertools.count()
    bench = replace(bench, now=lambda: next(ticks))
    summary = tune([CASE, OTHER], tmp_path, budget=4, bench=bench)
    assert (summary.left, summary.measured) == (2, {})
    assert not path_in(tmp_path).exists()


def test_no_case_begins_after_the_budget(launcher, bench, monkeypatch, tmp_path):
    spent = []
    monkeypatch.setattr(module, "variants_of", lambda case: {"two_launches": None})
    bench = replace(bench, now=lambda: 10.0 * len(spent))
    summary = tune([CASE, OTHER], tmp_path, budget=5, bench=bench, say=spent.append)
    assert list(summary.measured) == [str(CASE)]
    assert summary.left == 1


def test_a_damaged_table_is_a_named_error_and_stays_as_it_is(launcher, bench, tmp_path):
    path = path_in(tmp_path)
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(TableError, match=path.name):
        tune([CASE], tmp_path, bench=bench)
    assert path.read_text() == "{"
    assert launcher.launched == []


def test_the_kernels_read_the_table(launcher, bench, monkeypatch, tmp_path):
    from lada_kernels import tuning

    tune([CASE], tmp_path, bench=bench)
    monkeypatch.setattr(tuning, "_folders", [tmp_path])
    monkeypatch.setattr(tuning, "gpu_slug", lambda index: "FAKE")
    tuning.fastest.cache_clear()
    variant = tuning.fastest("low_rank_linear", *CASE.key, 16, 0, ("dense", "one_launch"))
    tuning.fastest.cache_clear()
    assert variant == Variant("one_launch", BEST)


def test_the_summary_is_json(launcher, bench, tmp_path):
    summary = tune([CASE], tmp_path, bench=bench)
    assert json.loads(json.dumps(summary.to_dict()))["folder"] == str(tmp_path)


def test_a_case_outside_its_bucket_is_refused(launcher, bench, tmp_path):
    with pytest.raises(ValueError, match="expected that of its bucket, r128"):
        tune([Case(16, 16, "r100", "plain", 16, "float32")], tmp_path, bench=bench)


def test_without_a_gpu_there_is_nothing_to_tune(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NoGpu, match="finds no GPU"):
        tune([CASE], tmp_path)
