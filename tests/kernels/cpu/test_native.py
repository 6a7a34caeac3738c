import subprocess
import sys
import warnings

import pytest
import torch

from lada_kernels.cpu import native
from lada_kernels.cpu.instruction_sets import INSTRUCTION_SETS
from lada_kernels.cpu.linear import packed_linear_fwd
from lada_kernels.cpu.packing import Weight, pack

FORK = """
import os, torch
from lada_kernels.cpu.linear import packed_linear_fwd
from lada_kernels.cpu.packing import Weight, pack

torch.set_num_threads(2)
packed = pack([Weight(640, 64, sparse=torch.randn(640, 64))], [None], torch.bfloat16)
x = torch.randn(300, 64).bfloat16()
want = packed_linear_fwd(packed, x)
child = os.fork()
if child == 0:  # torch's own parallel operators would deadlock here
    got, want = (y.view(torch.int16).numpy() for y in (packed_linear_fwd(packed, x), want))
    os._exit(0 if (got == want).all() else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def fresh():
    native.best.cache_clear()
    yield
    native.best.cache_clear()


@pytest.mark.usefixtures("fresh")
class TestBest:
    def test_is_the_first_that_was_built_and_runs(self, monkeypatch):
        monkeypatch.setattr(native, "supported", lambda name: name != "amx")
        monkeypatch.setattr(native, "load", lambda name: f"functions of {name}")
        assert native.best() == ("avx512bf16", "functions of avx512bf16")

    def test_is_the_next_where_one_does_not_load(self, monkeypatch):
        def load(name):
            if name != "portable":
                raise OSError(f"{name} is broken")
            return "functions"

        monkeypatch.setattr(native, "load", load)
        assert native.best() == ("portable", "functions")

    def test_is_none_with_one_warning_where_none_was_built(self, monkeypatch):
        monkeypatch.setattr(native, "library_path", lambda name: None)
        with pytest.warns(UserWarning, match="plain torch and are slower.*it was not built"):
            assert native.best() is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert native.best() is None

    def test_a_file_that_is_no_library_counts_as_none(self, monkeypatch, tmp_path):
        (tmp_path / "broken.so").write_text("no library")
        monkeypatch.setattr(native, "library_path", lambda name: tmp_path / "broken.so")
        with pytest.warns(UserWarning, match="plain torch"):
            assert native.best() is None

    def test_calls_without_it_say_so(self, monkeypatch):
        monkeypatch.setattr(native, "best", lambda: None)
        with pytest.raises(RuntimeError, match="no native library for this machine"):
            native.library()


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        (INSTRUCTION_SETS["amx"].cpu_flags, "amx"),
        (INSTRUCTION_SETS["avx512bf16"].cpu_flags, "avx512bf16"),
        (INSTRUCTION_SETS["avx512"].cpu_flags, "avx512"),
        (INSTRUCTION_SETS["avx2"].cpu_flags | {"avx512f"}, "avx2"),
        ({"sse2", "avx"}, "portable"),
        (set(), "portable"),
    ],
)
def test_a_cpu_runs_the_best_build_whose_flags_it_has(flags, best, monkeypatch):
    monkeypatch.setattr(native, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(native, "_amx_permitted", lambda: True)
    assert next(name for name in INSTRUCTION_SETS if native.supported(name)) == best


def test_a_system_may_refuse_amx(monkeypatch):
    monkeypatch.setattr(native, "_cpu_flags", lambda: INSTRUCTION_SETS["amx"].cpu_flags)
    monkeypatch.setattr(native, "_amx_permitted", lambda: False)
    assert not native.supported("amx")
    assert native.supported("avx512bf16")


@pytest.mark.skipif(not native.supported("amx"), reason="this CPU has no AMX")
def test_other_libraries_may_use_amx_between_calls():
    x, weight = torch.randn(64, 200).bfloat16(), torch.randn(96, 200)
    packed = pack([Weight(96, 200, sparse=weight)], [None], torch.bfloat16)
    ours, theirs = packed_linear_fwd(packed, x), x @ weight.bfloat16().T  # oneDNN uses tiles
    for _ in range(3):
        assert torch.equal(packed_linear_fwd(packed, x), ours)
        assert torch.equal(x @ weight.bfloat16().T, theirs)
    torch.testing.assert_close(ours, theirs)


def test_calls_use_as_many_threads_as_torch():
    torch.set_num_threads(3)
    assert native.threads() == 3


@pytest.mark.skipif(native.library_path("portable") is None, reason="no native library was built")
def test_a_forked_child_computes_alone():
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "0"
