from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lada_kernels import tuning
from lada_kernels.variants import TileConfig, Variant
from lada_ops.latency import GraphClock
from lada_ops.machine_code.targets import TARGETS
from lada_ops.tune import Bench, Case, NoGpu
from lada_ops.tune import device as module
from lada_ops.tune.variants import variants_of

CASE = Case(768, 3072, "r64", "fused", 2048)


@pytest.fixture
def gpu(monkeypatch):
    """Function that pretends a GPU with the given properties is present."""

    def pretend(capability=(9, 0), **properties):
        major, minor = capability
        found = SimpleNamespace(L2_cache_size=50 << 20, major=major, minor=minor, **properties)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    tuning.unsupported.cache_clear()
    yield pretend
    tuning.unsupported.cache_clear()


def gated_targets(monkeypatch):
    """List that collects the targets of `gate_for`'s calls."""
    targets = []
    monkeypatch.setattr(module, "gate_for", lambda target: targets.append(target.name))
    return targets


def test_a_gpu_is_measured_by_graphs_with_its_own_cache_and_gate(gpu, monkeypatch):
    targets = gated_targets(monkeypatch)
    gpu()
    bench = Bench.of_gpu()
    assert bench.device == torch.device("cuda", 1)
    assert bench.name == "NVIDIA_H200"
    assert bench.l2_bytes == 50 << 20
    assert isinstance(bench.clock, GraphClock)
    assert targets == ["sm_90"]


def test_an_architecture_without_a_target_has_no_gate(gpu, monkeypatch):
    targets = gated_targets(monkeypatch)
    gpu((10, 3))
    assert Bench.of_gpu().faults(CASE, Variant("one_launch")) == []
    assert targets == []


def test_amd_gpus_are_gated_by_architecture(gpu, monkeypatch):
    targets = gated_targets(monkeypatch)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    gpu((9, 4), gcnArchName="gfx942:sramecc+:xnack-")
    Bench.of_gpu()
    assert targets == ["gfx942"]


@pytest.mark.parametrize(
    ("capability", "hip", "has"),
    [((8, 9), None, False), ((9, 0), None, True), ((12, 0), None, True), ((9, 4), "7.0", False)],
)
def test_pdl_is_that_of_the_gpu(capability, hip, has, gpu, monkeypatch):
    gated_targets(monkeypatch)
    monkeypatch.setattr(torch.version, "hip", hip)
    gpu(capability, gcnArchName="gfx942")
    assert Bench.of_gpu().pdl is has


def test_a_gpu_that_is_too_old_is_refused(gpu):
    gpu((7, 5))
    with pytest.raises(NoGpu, match="compute capability 7.5; expected 8.0 or newer"):
        Bench.of_gpu()


@pytest.mark.parametrize("call", ["synchronize", "empty_cache"])
def test_a_lost_gpu_is_reported(gpu, monkeypatch, call):
    gpu()
    bench = Bench.of_gpu()
    bench.check_alive()

    def illegal(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, call, illegal)
    with pytest.raises(NoGpu, match="the GPU is lost: an illegal memory access"):
        bench.check_alive()


class TestGate:
    """Static gate on compiled machine code of the real kernels."""

    gate = staticmethod(module.gate_for(TARGETS["sm_90"]))

    @pytest.mark.parametrize(
        ("weight", "epilogue"),
        [
            ("r64", "fused"),
            ("128x16-d20", "plain"),
            ("r64+64x16-d05", "norm"),
            ("r64-3072-r64", "norm"),
        ],
    )
    def test_default_tiles_pass(self, weight, epilogue):
        case = replace(CASE, weight=weight, epilogue=epilogue)
        for name, space in variants_of(case).items():
            if space is not None:
                assert self.gate(case, Variant(name, space.start)) == []

    def test_tokens_with_equal_launches_are_compiled_once(self):
        self.gate(CASE, Variant("one_launch", TileConfig(16, 64, 64, 4, 3)))
        before = module.compile_launch.cache_info().misses
        self.gate(replace(CASE, tokens=4096), Variant("one_launch", TileConfig(16, 64, 64, 4, 3)))
        assert module.compile_launch.cache_info().misses == before

    def test_tiles_of_few_rows_pass_without_wgmma(self):
        assert self.gate(CASE, Variant("one_launch", TileConfig(16, 64, 64, 4, 3))) == []

    def test_tiles_too_large_for_the_shared_memory_are_refused(self):
        faults = self.gate(CASE, Variant("one_launch", TileConfig(128, 128, 128, 8, 8)))
        assert any("shared memory" in fault for fault in faults)

    def test_tiles_too_large_for_the_registers_are_refused(self):
        wide = replace(CASE, weight="r256")
        faults = self.gate(wide, Variant("one_launch", TileConfig(128, 64, 32, 4, 2)))
        assert any("spill" in fault for fault in faults)

    def test_a_variant_that_torch_computes_has_no_faults(self):
        assert self.gate(replace(CASE, epilogue="plain"), Variant("two_launches")) == []
