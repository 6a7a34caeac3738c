"""Peers with fakes for their kernels, on the CPU."""

import pytest
import torch
import torch.nn.functional as F
import triton.testing
from torch.sparse import _triton_ops, semi_structured

from benchmarks.suite import peers
from lada_ops.tune import Case
from lada_ops.tune.operands import Operands

CASE = Case(64, 128, "32x16-d50", "fused", 48, "float32")
META = {"GROUP_SIZE_ROW", "SPLIT_N", "num_stages", "num_warps"}

pytestmark = pytest.mark.filterwarnings("ignore:Sparse BSR")


@pytest.fixture
def operands():
    return Operands.draw(CASE, torch.device("cpu"))


@pytest.fixture
def metas(monkeypatch):
    """Parameters of the calls of a fake for torch's kernel."""
    metas = []

    def bsr_dense_addmm(input, bsr, dense, *, beta=1, alpha=1, meta=None, out=None, **_):
        metas.append(meta)
        return beta * input + alpha * (bsr.to_dense() @ dense)

    monkeypatch.setattr(_triton_ops, "bsr_dense_addmm", bsr_dense_addmm)
    monkeypatch.setattr(peers, "_tuned", {})
    return metas


@pytest.fixture
def bench(monkeypatch):
    """Fake for Triton's do_bench, with the same time for every call; a list of its settings."""
    settings = []

    def do_bench(function, **kwargs):
        function()
        settings.append(kwargs)
        return 1.0

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    return settings


class TestTorchBsr:
    def test_it_computes_the_case(self, operands, metas, bench):
        peer = peers.torch_bsr(operands)
        got = peer.call(**peer.tensors)
        torch.testing.assert_close(got.double(), operands.expected(), rtol=1e-5, atol=1e-5)

    def test_it_runs_with_what_its_tuner_found(self, operands, metas, bench):
        peer = peers.torch_bsr(operands)
        peer.call(**peer.tensors)
        assert set(metas[-1]) == META
        assert peer.note["meta"] == metas[-1]
        assert peer.note["tuner_configurations"] == len(bench) > 10
        assert peer.note["tuned_at_density"] == 0.5

    def test_its_tuner_is_hurried(self, operands, metas, bench):
        peers.torch_bsr(operands)
        assert bench[0] == {"warmup": peers.WARM_UP, "rep": peers.REPEAT}

    def test_its_tuner_runs_once_for_all_densities(self, operands, metas, bench):
        assert not peers.is_tuned(CASE)
        peers.torch_bsr(operands)
        assert peers.is_tuned(CASE)
        tried = len(bench)
        peers.torch_bsr(operands)
        assert len(bench) == tried

    def test_a_tuner_out_of_time_gives_the_best_so_far(self, operands, metas, bench, monkeypatch):
        now = iter(range(0, 1000, 5))
        monkeypatch.setattr(peers.time, "monotonic", lambda: next(now))
        assert peers.torch_bsr(operands).note["tuner_configurations"] == 2

    def test_a_tuner_that_finds_nothing_says_why_and_is_not_run_again(
        self, operands, metas, monkeypatch
    ):
        calls = []

        def do_bench(function, **_):
            calls.append(function)
            raise RuntimeError("no such GPU")

        monkeypatch.setattr(triton.testing, "do_bench", do_bench)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="none of 2 configurations.*no such GPU"):
                peers.torch_bsr(operands)
        assert len(calls) == 2


class TestTwoToFour:
    def test_the_two_smallest_of_each_four_are_pruned(self):
        weight = torch.tensor([[1.0, -4, 3, 2, 8, 7, -6, 5]])
        assert peers.prune_2to4(weight).tolist() == [[0.0, -4, 3, 0, 8, 7, 0, 0]]

    @pytest.mark.parametrize("backend", ["CUTLASS", "CUSPARSELT"])
    def test_it_is_held_to_the_pruned_weight(self, operands, backend, monkeypatch):
        kind = getattr(semi_structured, f"SparseSemiStructuredTensor{backend}")
        monkeypatch.setattr(kind, "from_dense", classmethod(lambda cls, pruned: pruned))
        weight = operands.dense_weights()[0].float()
        peer = peers.two_to_four(operands, weight, backend)
        got = peer.call(**peer.tensors)
        want = F.gelu(F.linear(operands.x, peers.prune_2to4(weight), operands.biases["bias"]))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(got.double(), peer.expected, rtol=1e-5, atol=1e-5)
        assert peer.macs == weight.numel() // 2
