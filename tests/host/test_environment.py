import getpass
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from lada_kernels.cpu import native
from lada_ops.host import environment as module
from lada_ops.host.environment import device_slug, environment


@pytest.fixture(autouse=True)
def _driver_not_asked_before():
    module._gpu_driver.cache_clear()
    yield
    module._gpu_driver.cache_clear()


def test_it_is_json_and_names_what_matters():
    found = json.loads(json.dumps(environment()))
    assert found["python"] == platform.python_version()
    assert found["torch"] == torch.__version__
    assert found["cpu"]
    assert found["cpu_logical_cores"] == os.cpu_count()
    assert found["torch_threads"] == torch.get_num_threads()


@pytest.mark.parametrize(
    ("matrix_unit", "named"), [(True, "AMX"), (False, torch.backends.cpu.get_cpu_capability())]
)
def test_the_instruction_set_may_be_more_than_torch_names(matrix_unit, named, monkeypatch):
    monkeypatch.setattr(native, "supported", lambda name: matrix_unit)
    assert environment()["cpu_instruction_set"] == named


def test_it_tells_nothing_of_whose_machine_it_is():
    values = [str(value) for value in environment().values()]
    for secret in {platform.node(), str(Path.home()), str(Path.cwd()), "/"} - {""}:
        assert not any(secret in value for value in values)
    assert getpass.getuser() not in values


def test_a_package_that_is_missing_is_none(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package-here",))
    assert environment()["no-such-package-here"] is None


def test_without_a_gpu_its_fields_are_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = environment()
    assert (found["gpu"], found["gpu_driver"], found["cuda"]) == (None, None, None)


def test_with_a_gpu_its_driver_is_asked_for(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, stdout="570.86.15\n570.86.15\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(module.shutil, "which", lambda command: f"/usr/bin/{command}")
    monkeypatch.setattr(module.subprocess, "run", lambda *args, **kwargs: answer)
    found = environment()
    assert (found["gpu"], found["gpu_driver"], found["cuda"]) == (
        "NVIDIA H200",
        "570.86.15",
        "13.0",
    )


@pytest.mark.parametrize("error", [OSError(), subprocess.TimeoutExpired("nvidia-smi", 10)])
def test_a_driver_that_does_not_answer_is_none(monkeypatch, error):
    def run(*args, **kwargs):
        raise error

    monkeypatch.setattr(module.shutil, "which", lambda command: command)
    monkeypatch.setattr(module.subprocess, "run", run)
    assert module._gpu_driver() is None


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("AMD EPYC", "AMD_EPYC"),
        ("AMD EPYC 9B14 96-Core Processor", "AMD_EPYC_9B14_96_Core"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "Intel_Xeon_Platinum_8481C"),
    ],
)
def test_the_cpus_slug_is_its_model(monkeypatch, name, slug):
    monkeypatch.setattr(module, "_cpu_model", lambda: name)
    assert device_slug("cpu") == slug


def test_the_gpus_slug_is_its_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert device_slug() == device_slug("cuda:0") == "NVIDIA_H200"
