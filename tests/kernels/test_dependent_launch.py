"""Programmatic dependent launches of every kernel that can be one."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.operands import (
    factors,
    ffn_launcher,
    launcher,
    layer_norm,
    normal,
    random_pattern,
    sparse_weight,
    to_bsr,
)

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


@pytest.fixture
def calls(kernels, device):
    """Kernels launched -> a launcher as a function of its variant, and the variant's name."""
    kind = {"dtype": torch.float16, "device": device}
    m, n, k, rank = 19, 48, 32, 20
    x, residual, bias = normal(m, k, **kind), normal(m, n, **kind), normal(n, **kind)
    norm, factored = layer_norm(n, **kind), factors(n, k, rank, **kind)
    up, down = factors(53, k, rank, **kind), factors(n, 53, rank, **kind)
    bsr = to_bsr(sparse_weight(random_pattern(3, 2, 0.6), (16, 16), **kind), (16, 16))
    last, t = (residual, "tanh", norm), normal(m, rank, **kind)

    def low_rank(variant):
        return launcher(kernels, "low_rank_linear")(x, *factored, bias, *last, variant=variant)

    def block_sparse(variant):
        return launcher(kernels, "block_sparse_linear")(x, *bsr, bias, *last, variant=variant)

    def both(variant):
        fwd = launcher(kernels, "sparse_low_rank_linear")
        return fwd(x, *factored, *bsr, bias, *last, variant=variant)

    def ffn(variant):
        return ffn_launcher(kernels)(
            x, *up, None, *down, bias, *last[:2], norm=norm, variant=variant
        )

    def dx(variant):
        return kernels.low_rank_linear_bwd.low_rank_linear_dx(residual, *factored, variant=variant)[
            0
        ]

    def dfactors(variant):
        by = kernels.low_rank_linear_bwd.low_rank_linear_dfactors
        return by(residual, x, t, t, tiles=variant.tiles)[0]

    def dvalues(variant):
        by = kernels.block_sparse_linear_bwd.block_sparse_linear_dvalues
        return by(residual, x, *bsr[:2], 16, 16, tiles=variant.tiles)

    return {
        "low_rank_linear": (low_rank, "one_launch"),
        "linear, add_norm": (low_rank, "two_launches"),
        "block_sparse_linear, add_norm": (block_sparse, "one_launch"),
        "sparse_low_rank_linear, add_norm": (both, "one_launch"),
        "low_rank_ffn": (ffn, "one_launch"),
        "low_rank_ffn, its sum": (ffn, "split"),
        "low_rank_linear_dx": (dx, "one_launch"),
        "low_rank_linear_dfactors": (dfactors, "one_launch"),
        "block_sparse_linear_dvalues": (dvalues, "one_launch"),
    }


@pytest.fixture
def watch_waits(kernels, device, monkeypatch):
    """Function, to be called before launches, that returns the waits of each interpreted program.

    A program that touches memory before it has waited fails the test.
    """

    def watch():
        cuda, waits = kernels.triton.language.extra.cuda, []
        builder = kernels.triton.runtime.interpreter.InterpreterBuilder
        start = builder.set_grid_idx

        def started(self, *index):
            waits.append(0)
            start(self, *index)

        def wait():
            waits[-1] += 1

        def watched(touch):
            def call(self, *args):
                assert waits[-1] == 1, "touches memory before it has waited"
                return touch(self, *args)

            return call

        monkeypatch.setattr(builder, "set_grid_idx", started)
        monkeypatch.setattr(cuda, "gdc_wait", wait)
        monkeypatch.setattr(cuda, "gdc_launch_dependents", lambda: None)
        for name in ("create_masked_load", "create_masked_store"):
            monkeypatch.setattr(builder, name, watched(getattr(builder, name)))
        return waits

    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (9, 0):
            pytest.skip("this GPU has no programmatic dependent launch")
        return lambda: [1]  # seen by what comes out
    return watch


@pytest.mark.parametrize(
    "name",
    [
        *("low_rank_linear", "linear, add_norm", "block_sparse_linear, add_norm"),
        *("sparse_low_rank_linear, add_norm", "low_rank_ffn", "low_rank_ffn, its sum"),
        *("low_rank_linear_dx", "low_rank_linear_dfactors", "block_sparse_linear_dvalues"),
    ],
)
def test_every_program_waits_once_and_computes_the_same(name, kernels, calls, watch_waits):
    call, variant = calls[name]
    tiles = kernels.variants.TileConfig(16, 16, 16, 4, 2)
    want = call(kernels.variants.Variant(variant, tiles))
    waits = watch_waits()
    assert torch.equal(call(kernels.variants.Variant(variant, replace(tiles, pdl=True))), want)
    assert set(waits) == {1}
