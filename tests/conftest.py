"""Settings that every test runs under, and the devices it runs on."""

import os

import pytest
import torch

# the compile cache is not keyed on op registrations: a changed backward would go on passing
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

pytest.register_assert_rewrite(
    "tests.modules.bsr_module_suite",
    "tests.modules.module_suite",
    "tests.ops.op_suite",
    "tests.ops.op_transform_suite",
    "tests.ops.operands",
    "tests.ops.order_suite",
)


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_outputs(monkeypatch):
    """New memory holds NaN: what a kernel leaves unwritten must fail, not pass by luck."""
    new_empty, empty = torch.Tensor.new_empty, torch.empty

    def poison(t):
        return t.fill_(float("nan")) if t.is_floating_point() and not t.is_meta else t

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **kw: poison(new_empty(*a, **kw)))
    monkeypatch.setattr(torch, "empty", lambda *a, **kw: poison(empty(*a, **kw)))


@pytest.fixture(scope="session")
def bert_base():
    """The shapes of BERT-base, without memory."""
    from transformers import BertConfig, BertModel  # after the environment is set

    with torch.device("meta"):
        return BertModel(BertConfig())
