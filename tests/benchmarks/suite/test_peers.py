"""Others' sparse products, called as they want it; on the CPU with stand-ins for their kernels."""

import pytest
import torch
import torch.nn.functional as F
import triton.testing
from torch.sparse import _triton_ops, semi_structured

from benchmarks.suite import peers
from benchmarks.suite.cases import Case
from benchmarks.suite.problem import Operands

CASE = Case("block_sparse_linear", 48, 64, 128, "gelu", 0, (32, 16), 0.5)
META = {"GROUP_SIZE_ROW", "SPLIT_N", "num_stages", "num_warps"}

pytestmark = pytest.mark.filterwarnings("ignore:Sparse BSR")


@pytest.fixture
def operands():
    return Operands.draw(CASE, torch.device("cpu"), torch.float32)


@pytest.fixture
def metas(monkeypatch):
    """What the stand-in for torch's kernel was called with."""
    seen = []

    def bsr_dense_addmm(input, bsr, dense, *, beta=1, alpha=1, meta=None, out=None, **_):
        seen.append(meta)
        return beta * input + alpha * (bsr.to_dense() @ dense)

    monkeypatch.setattr(_triton_ops, "bsr_dense_addmm", bsr_dense_addmm)
    monkeypatch.setattr(peers, "_tuned", {})
    return seen


@pytest.fixture
def bench(monkeypatch):
    """A stand-in for Triton's clock that finds each call as fast as the last."""
    settings = []

    def do_bench(function, **kwargs):
        function()
        settings.append(kwargs)
        return 1.0

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    return settings


class TestTorchBsr:
    def test_it_computes_the_case(self, operands, metas, bench):
        entry = peers.torch_bsr(operands)
        got = entry.call(**entry.tensors)
        torch.testing.assert_close(got.double(), operands.expected(), rtol=1e-5, atol=1e-5)

    def test_it_runs_with_what_its_tuner_found(self, operands, metas, bench):
        entry = peers.torch_bsr(operands)
        entry.call(**entry.tensors)
        assert set(metas[-1]) == META
        assert entry.note["meta"] == metas[-1]
        assert entry.note["tuner_configurations"] == len(bench) > 10
        assert entry.note["tuned_at_density"] == 0.5

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

    def test_a_tuner_that_finds_nothing_says_why_and_is_not_asked_again(
        self, operands, metas, monkeypatch
    ):
        asked = []

        def do_bench(function, **_):
            asked.append(function)
            raise RuntimeError("no such GPU")

        monkeypatch.setattr(triton.testing, "do_bench", do_bench)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="none of 2 configurations.*no such GPU"):
                peers.torch_bsr(operands)
        assert len(asked) == 2


class TestTwoToFour:
    def test_the_two_smallest_of_each_four_are_pruned(self):
        weight = torch.tensor([[1.0, -4, 3, 2, 8, 7, -6, 5]])
        assert peers.prune_2to4(weight).tolist() == [[0.0, -4, 3, 0, 8, 7, 0, 0]]

    @pytest.mark.parametrize("backend", ["CUTLASS", "CUSPARSELT"])
    def test_it_is_held_to_the_pruned_weight(self, operands, backend, monkeypatch):
        kind = getattr(semi_structured, f"SparseSemiStructuredTensor{backend}")
        monkeypatch.setattr(kind, "from_dense", classmethod(lambda cls, pruned: pruned))
        weight = operands.weight().float()
        entry = peers.two_to_four(operands, weight, backend)
        got = entry.call(**entry.tensors)
        want = F.gelu(F.linear(operands.x, peers.prune_2to4(weight), operands.bias))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(got.double(), entry.expected, rtol=1e-5, atol=1e-5)
        assert entry.macs == weight.numel() // 2
