import json
import sys
from dataclasses import replace

import pytest

from lada_kernels.table import Key, Measured, Table, TableError
from lada_kernels.variants import TileConfig
from lada_ops.machine_code.catalogue import design, launches_of, shipped, tabled
from lada_ops.machine_code.hopper_regimes import REGIMES
from lada_ops.machine_code.regimes import ADD_NORM, FFN, LINEAR, LOW_RANK, Regime
from tests.test_layout import STEMS

REGIME = Regime(
    kernel=LOW_RANK,
    stem="low_rank_linear",
    tokens=(128, 8192),
    weights={"r64": (4, 0.5), "r128": (3, 0.3)},
    epilogues={"none": 6.0, "gelu": 17.0},
    variant="one_launch",
)


def test_a_regime_crosses_weights_and_epilogues():
    got = {(s.call.weight, s.call.epilogue) for s in launches_of([REGIME])}
    assert got == {("r64", "none"), ("r64", "gelu"), ("r128", "none"), ("r128", "gelu")}


def test_equal_launches_are_listed_once():
    launches = [s.launch for s in launches_of([REGIME])]
    assert len(set(launches)) == len(launches)
    assert {s.call.tokens for s in launches_of([REGIME])} == {128}


def test_limits_are_those_of_the_regime():
    (limits,) = {
        s.limits
        for s in launches_of([REGIME])
        if (s.call.weight, s.call.epilogue) == ("r128", "gelu")
    }
    assert limits.occupancy == 3
    assert limits.issue_per_tensor == 0.3
    assert limits.instructions_per_element == 17.0


def test_a_regime_limits_its_own_kernel_alone():
    sums = replace(REGIME, kernel=LINEAR, variant="two_launches")
    assert {s.launch.name for s in launches_of([replace(sums, epilogues={"gelu": 9.0})])} == {
        LINEAR
    }


def test_an_epilogue_kernel_needs_no_tensor_cores():
    weights, epilogues = {"r64": (1, 9.0)}, {"norm": 99.0}
    regime = Regime(ADD_NORM, "low_rank_linear", (16,), weights, epilogues, variant="dense")
    (found,) = launches_of([regime])
    assert not found.limits.tensor_cores


def test_a_kernel_that_is_not_launched_is_an_error():
    with pytest.raises(RuntimeError, match="expected a launch of _linear_fwd_kernel"):
        launches_of([replace(REGIME, kernel=LINEAR)])


@pytest.mark.parametrize(("tokens", "wgmma"), [(16, False), (8192, True)])
def test_tiles_of_64_rows_need_wgmma(tokens, wgmma):
    (found, *_) = launches_of([replace(REGIME, tokens=(tokens,))])
    assert found.limits.wgmma is wgmma


def test_weights_left_needs_wgmma_at_few_tokens():
    left = Regime(
        *("_block_sparse_linear_fwd_kernel", "block_sparse_linear", (16,)),
        {"64x16-d20": (1, 9)},
        {"none": 99},
        variant="weights_left",
    )
    assert design(launches_of([left])[0].launch).wgmma


def test_a_feed_forward_may_load_its_bias():
    launches = [s.launch for s in shipped() if s.launch.name == FFN]
    assert {design(launch).synchronous_loads for launch in launches} == {8}


def test_every_stem_is_shipped():
    assert {regime.stem for regime in REGIMES} == set(STEMS)


def test_shipped_takes_a_stem():
    assert {s.call.stem for s in shipped("low_rank_ffn")} == {"low_rank_ffn"}


def test_tabled_lists_the_variants_of_tables(tmp_path):
    tiles = TileConfig(BLOCK_M=32, BLOCK_N=128, BLOCK_K=64, num_warps=4, num_stages=2)
    variants = {"dense": Measured(9.0), "one_launch": Measured(5.0, tiles)}
    table = Table("low_rank_linear", "NVIDIA_H200", "3.7")
    for tokens in (512, 1024):  # which launch alike
        table.add(Key("float16", 768, 3072, "r96", "fused"), tokens, variants, {})
    path = tmp_path / "low_rank_linear" / Table.name("NVIDIA_H200", "3.7")
    path.parent.mkdir()
    path.write_text(json.dumps(table.to_dict()))
    found, after_dense = sorted(tabled(tmp_path), key=lambda s: s.launch.name == ADD_NORM)
    constants = dict(found.launch.constants)
    assert (constants["RANK"], constants["ACTIVATION"]) == (96, "gelu_poly")
    assert after_dense.launch.name == ADD_NORM
    assert found.launch.tiles.items() <= tiles.kwargs().items()
    assert found.limits == design(found.launch)


def test_a_damaged_table_is_an_error(tmp_path):
    (tmp_path / "low_rank_linear").mkdir()
    (tmp_path / "low_rank_linear/NVIDIA_H200-triton3.7.json").write_text("{")
    with pytest.raises(TableError, match="NVIDIA_H200-triton3.7.json is no tuned table"):
        tabled(tmp_path)


def test_unknown_stem_is_named_with_those_that_are_known():
    with pytest.raises(ValueError, match="op 'low_rank'; expected one of low_rank_linear, "):
        shipped("low_rank")


def test_missing_triton_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"):
        shipped()


def test_interpreted_triton_says_what_to_do(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ImportError, match="expected no TRITON_INTERPRET"):
        shipped()
