"""Tensors are made where and in what the caller's are, whatever torch's defaults say."""

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

import lada_ops
from lada_ops import compress, decompress, layer_statistics, optimize, restore, shrink
from lada_ops.compression.plan import METHODS, Method
from tests.modules.module_suite import IN, OUT
from tests.ops.operands import call, operands
from tests.tiny_encoders import batch, tiny_bert

ROOT = Path(__file__).parents[1]
FLOATING = {"zeros", "ones", "empty", "full", "eye", "randn", "rand", "tensor", "linspace"}
PLACED = FLOATING | {"arange", "randint", "randperm", "as_tensor", "asarray", "scalar_tensor"}


def factory_calls(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that leave the device or the dtype of a tensor to torch, and how."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, given = node.func.attr, {keyword.arg for keyword in node.keywords}
        if ast.unparse(node.func.value) != "torch" or None in given:  # None: a dict of them
            continue
        wanted = ({"device"} & given) ^ {"device"} if name in PLACED else set()
        wanted |= {"dtype"} - given if name in FLOATING else set()
        if wanted:
            yield node.lineno, f"torch.{name} without {' and '.join(sorted(wanted))}"


@pytest.mark.parametrize("package", ["lada_ops", "kernels/lada_kernels"])
def test_factories_name_device_and_dtype(package):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, what in factory_calls(path)
    ]
    assert found == []


def test_a_factory_that_leaves_something_to_torch_is_found(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "torch.arange(3)\ntorch.zeros(2, device=d)\ntorch.eye(2)\n"
        "torch.ones(2, dtype=t, device=d)\ntorch.empty(2, **like)\nnumpy.zeros(3)\n"
    )
    assert list(factory_calls(file)) == [
        (1, "torch.arange without device"),
        (2, "torch.zeros without dtype"),
        (3, "torch.eye without device and dtype"),
    ]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)


DEFAULTS: dict[str, Callable[[], Any]] = {
    "meta": lambda: torch.device("meta"),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


# each case is prepared under torch's own defaults, and used under others


def an_op(stem: str) -> Callable[[], Any]:
    given = operands(stem, (2, 3), activation="gelu", norm=True)
    trained = given.requires_grad()

    def use():
        y = call(stem, trained)
        return call(stem, given), y, torch.autograd.grad(y.square().sum(), trained.tensors)

    return use


def a_module(name: str, **size: Any) -> Callable[[], Any]:
    linear, x = nn.Linear(IN, OUT), torch.randn(3, IN)

    def use():
        module = getattr(lada_ops, name).from_linear(linear, **size)
        weight = module.format
        scaled = weight.to(torch.float64).scaled(linear.bias.double()).to_dense()
        return module.state_dict(), module(x), module.to_linear().weight, weight.to_dense(), scaled

    return use


def a_calibration(method: Method) -> Callable[[], Any]:
    model, batches = tiny_bert(), [batch(), batch(2, 6, seed=1)]

    def use():
        seen = layer_statistics(model, batches, quiet=True)
        report = compress(
            *(model, 1.5, method),
            calibration=seen,
            sequential=batches,
            block=(16, 16),
            rank_multiple=2,
            quiet=True,
        )
        errors = [(layer.weight_error, layer.activation_error) for layer in report.layers.values()]
        return [vars(one) for one in seen.values()], model.state_dict(), errors

    return use


def a_model(method: Method, tmp_path: Path) -> Callable[[], Any]:
    model, inputs = tiny_bert(), batch()

    def use():
        compress(model, 1.5, method, block=(16, 16), rank_multiple=2, quiet=True)
        model.save_pretrained(tmp_path)
        with torch.no_grad():
            said = [model(**inputs)[0]]
            for module in model.modules():
                if hasattr(module, "values"):
                    module.values[:1] = 0
        smaller = len(shrink(model))
        decompress(model)
        return said, smaller, model.state_dict()

    return use


def a_loaded_model(method: Method, tmp_path: Path) -> Callable[[], Any]:
    a_model(method, tmp_path)()

    def use():
        return AutoModel.from_pretrained(tmp_path).state_dict()

    return use


def an_optimized_model(method: Method | None, dtype: torch.dtype) -> Callable[[], Any]:
    model, inputs = tiny_bert(), batch()
    given = inputs, batch(1, 4), {"input_ids": batch(2, 5)["input_ids"]}
    if method is not None:
        compress(model, 2, method, block=(16, 16), rank_multiple=2, quiet=True)

    def use():
        optimize(model, dtype)
        with torch.inference_mode():
            said = [model(**one)[0] for one in given]
        said[0] = said[0][inputs["attention_mask"].bool()]  # where there is padding, anything
        restore(model)
        return said, model.state_dict()

    return use


def cases(tmp_path: Path) -> dict[str, Callable[[], Callable[[], Any]]]:
    stems = ["low_rank_linear", "block_sparse_linear", "sparse_low_rank_linear", "low_rank_ffn"]
    bsr: dict[str, Any] = {"block": (8, 4), "density": 0.3}
    found: dict[str, Callable[[], Callable[[], Any]]] = {s: partial(an_op, s) for s in stems}
    found["LowRankLinear"] = partial(a_module, "LowRankLinear", rank=3)
    found["BlockSparseLinear"] = partial(a_module, "BlockSparseLinear", **bsr)
    found["SparseLowRankLinear"] = partial(a_module, "SparseLowRankLinear", rank=3, **bsr)
    for method in METHODS:
        found[f"calibrated {method}"] = partial(a_calibration, method)
        found[f"saved {method}"] = partial(a_model, method, tmp_path)
        found[f"loaded {method}"] = partial(a_loaded_model, method, tmp_path)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        for method in (None, *METHODS):
            found[f"optimized {method} {dtype}"] = partial(an_optimized_model, method, dtype)
    return found


# `make test` has one dtype and one method of each kind
REPEATED = re.compile("bfloat16|int8|(saved|loaded|optimized) (block|sparse)")
CASES = [
    pytest.param(case, marks=[pytest.mark.exhaustive] if REPEATED.search(case) else [])
    for case in cases(Path())
]


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("case", CASES)
def test_defaults_of_torch_change_nothing(case, default, tmp_path):
    if case.startswith("loaded") and default == "meta":
        pytest.skip("transformers refuses to load where tensors have no data")
    prepare = cases(tmp_path)[case]
    torch.manual_seed(0)
    want = prepare()()
    torch.manual_seed(0)
    use = prepare()
    with DEFAULTS[default]():
        got = use()
    torch.testing.assert_close(got, want, rtol=0, atol=0)
