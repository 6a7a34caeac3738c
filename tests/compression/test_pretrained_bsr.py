"""Saving and loading block-sparse parts; the rest is in test_pretrained.py."""

import pytest
import torch
from safetensors.torch import load_file

from lada_ops import compress
from lada_ops.modules.block_sparse_linear import BsrLinear
from tests.compression.test_pretrained import load, saved
from tests.modules.module_suite import is_panel_major
from tests.tiny_encoders import tiny_bert

METHODS = ["block_sparse", "sparse_low_rank"]


def test_indices_stay_int32(tmp_path):
    saved(tmp_path, tiny_bert(), "block_sparse")
    tensors = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for n, t in tensors.items() if "indices" in n} == {torch.int32}


@pytest.mark.parametrize("method", METHODS)
def test_values_are_panel_major(tmp_path, method):
    saved(tmp_path, tiny_bert(), method)
    values = [p for n, p in load(tmp_path).named_parameters() if n.endswith(".values")]
    assert len(values) == 12
    assert all(map(is_panel_major, values))


@pytest.mark.parametrize("method", METHODS)
def test_block_rows_are_in_the_order_of_their_load(tmp_path, method):
    model = tiny_bert(hidden_size=64, intermediate_size=128)
    compress(model, 2, method, rank_multiple=1, block=(16, 16), quiet=True)
    model.save_pretrained(tmp_path)
    modules = [m for m in load(tmp_path).modules() if isinstance(m, BsrLinear)]
    assert len(modules) == 12
    assert all(m.order is not None and torch.equal(m.order, m.bsr.order) for m in modules)
