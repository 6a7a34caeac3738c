"""FSDP2 shards compressed linears, once their parameters are contiguous; here in one process."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lada_ops import BlockSparseLinear, LowRankLinear, SparseLowRankLinear


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_a_step_is_that_of_one_process(mesh):
    block: dict[str, Any] = {"block": (8, 16), "density": 0.5}
    alone = nn.Sequential(
        LowRankLinear(32, 48, 8),
        BlockSparseLinear(48, 64, **block, activation="gelu"),
        SparseLowRankLinear(64, 32, 8, **block),
    )
    sharded, x = copy.deepcopy(alone), torch.randn(5, 32)
    for name in ("1.values", "2.values"):
        values = sharded.get_parameter(name)
        values.data = values.data.contiguous()
    fully_shard(sharded, mesh=mesh)
    for model in (alone, sharded):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(x).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(sharded(x), alone(x))
    whole = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    torch.testing.assert_close(whole, dict(alone.state_dict()))
