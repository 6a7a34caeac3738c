import math

import pytest
import torch
import torch.nn.functional as F

from lada_ops.ops import reference
from lada_ops.ops.reference import ACTIVATIONS, Norm, epilogue_ref

FORMULAS = {  # of one number, from their definitions
    "none": lambda z: z,
    "relu": lambda z: max(z, 0.0),
    "gelu": lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: (
        0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    ),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "tanh": math.tanh,
}


def test_every_activation_has_a_formula():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_its_formula(activation):
    z = torch.linspace(-6, 6, 97, dtype=torch.float64)
    want = torch.tensor([FORMULAS[activation](float(i)) for i in z], dtype=torch.float64)
    torch.testing.assert_close(epilogue_ref(z, activation), want, rtol=1e-13, atol=1e-13)


def test_residual_comes_after_the_activation():
    y = epilogue_ref(torch.tensor([-2.0]), "relu", torch.tensor([-3.0]))
    assert y.tolist() == [-3.0]


def test_low_rank_linear_by_hand():
    x, u, v = torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0], [10]]), torch.tensor([[1.0, 1, 1]])
    y = reference.low_rank_linear_ref(x, u, v, torch.tensor([0.5, 0.25]))
    assert y.tolist() == [[6.5, 60.25]]


def test_block_sparse_linear_by_hand():
    """One 2 x 1 block in the second block row and the third column: every index matters."""
    x = torch.tensor([[1.0, 10, 100]])
    crow, col = torch.tensor([0, 0, 1]), torch.tensor([2])
    y = reference.block_sparse_linear_ref(x, crow, col, torch.tensor([[[3.0], [7]]]))
    assert y.tolist() == [[0, 0, 300, 700]]


def test_sparse_low_rank_linear_by_hand():
    x = torch.tensor([[1.0, 10, 100]])
    u, v = torch.ones(4, 1), torch.tensor([[1.0, 0, 0]])
    crow, col = torch.tensor([0, 0, 1]), torch.tensor([2])
    y = reference.sparse_low_rank_linear_ref(x, u, v, crow, col, torch.tensor([[[3.0], [7]]]))
    assert y.tolist() == [[1, 1, 301, 701]]


def test_a_norm_keeps_the_dtype(monkeypatch):
    def in_autocast(*args):  # on a GPU, layer_norm gives fp32 there
        return layer_norm(*args).float()

    layer_norm = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", in_autocast)
    z = torch.ones(2, 3, dtype=torch.float16)
    assert epilogue_ref(z, "none", None, Norm(z[0], z[0], 1e-5)).dtype == z.dtype
