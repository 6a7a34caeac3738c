import copy
from typing import Any

import pytest
import torch

import lada_ops
from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear
from lada_ops.compression.pretrained import compression_of
from lada_ops.compression.shrink import plan_of, shrink
from tests.distill.models import collate, examples, tiny_classifier

QUERY = "bert.encoder.layer.0.attention.self.query"


def compressed(method: Any = "sparse_low_rank") -> Any:
    model = tiny_classifier(hidden_size=128, intermediate_size=256)
    made = lada_ops.plan(model, 2, method, block=(32, 16))
    lada_ops.compress(model, plan=made, quiet=True)
    return model


def recorded(model):
    found = compression_of(model)
    assert found is not None
    return found[1]


def answers(model):
    with torch.no_grad():
        return model(**collate(examples(4))).logits


@pytest.mark.parametrize("method", ["low_rank", "block_sparse", "sparse_low_rank"])
def test_the_same_function_in_fewer_bytes(method, tmp_path):
    model = compressed(method)
    shrink(model)  # of the sums, some have no blocks from the start
    query = model.get_submodule(QUERY)
    with torch.no_grad():
        if method != "block_sparse":
            query.u[:, 3:11] = 0
        if method != "low_rank":
            query.values[:4] = 0
    before = query.counts().stored_bytes
    want = answers(model)
    assert shrink(model) == [QUERY]
    torch.testing.assert_close(answers(model), want)
    after = model.get_submodule(QUERY).counts().stored_bytes
    assert after < before
    report = recorded(model)
    assert report.layers[QUERY].compressed.stored_bytes == after
    assert report.layers[QUERY].weight_error is None
    assert report.model_bytes == sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())
        if t is not None
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(answers(loaded), answers(model))


def test_a_part_of_a_sum_that_is_zero_goes():
    model = compressed()
    for name, part, kind in (
        (QUERY, "values", LowRankLinear),
        (QUERY.replace("query", "key"), "u", BlockSparseLinear),
    ):
        module = model.get_submodule(name)
        torch.nn.init.normal_(module.get_parameter("values"))
        torch.nn.init.zeros_(module.get_parameter(part))
        want = answers(model)
        shrink(model)
        assert type(model.get_submodule(name)) is kind
        torch.testing.assert_close(answers(model), want)


@pytest.mark.parametrize("method", ["low_rank", "block_sparse", "sparse_low_rank"])
def test_a_weight_of_zeros_keeps_the_least(method):
    model = compressed(method)
    module = model.get_submodule(QUERY)
    for name, parameter in module.named_parameters():
        if name != "bias":
            torch.nn.init.zeros_(parameter)
    want = answers(model)
    shrink(model)
    assert torch.equal(answers(model), want)
    assert 0 < model.get_submodule(QUERY).counts().parameters <= 128 + 128 + 4 * 32 * 16


def test_again_changes_nothing():
    model = compressed()
    with torch.no_grad():
        model.get_submodule(QUERY).u[:, 0] = 0
    assert shrink(model)
    before = copy.deepcopy(model.state_dict())
    assert shrink(model) == []
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_flags_and_mode_stay():
    model = compressed("low_rank").train()
    module = model.get_submodule(QUERY)
    module.requires_grad_(False)
    module.keep_dense = False
    with torch.no_grad():
        module.u[:, 0] = 0
    shrink(model)
    after = model.get_submodule(QUERY)
    assert after is not module
    assert after.training
    assert after.keep_dense is False
    assert not any(p.requires_grad for p in after.parameters())


@pytest.mark.parametrize(
    "module",
    [
        LowRankLinear(64, 128, 8),
        BlockSparseLinear(64, 128, (32, 16), 0.5),
        SparseLowRankLinear(64, 128, 8, (32, 16), 0.25),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_plan_of_a_module_is_of_its_sizes(module):
    plan = plan_of(module)
    assert (plan.in_features, plan.out_features) == (64, 128)
    assert plan.rank == getattr(module, "rank", None)
    assert (plan.block, plan.density) == (
        getattr(module, "block", None), getattr(module, "density", None),
    )  # fmt: skip


def test_a_base_that_was_compressed_inside_its_head_shrinks_with_it(tmp_path):
    model = compressed("low_rank").float()
    lada_ops.decompress(model)
    lada_ops.compress(model.bert, 2, "low_rank", quiet=True)
    query = model.get_submodule(QUERY)
    with torch.no_grad():
        query.u[:, 1:] = 0
    assert QUERY in shrink(model)
    assert recorded(model).layers[QUERY.removeprefix("bert.")].plan.rank == 1
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(answers(type(model).from_pretrained(tmp_path)), answers(model))
