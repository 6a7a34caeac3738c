"""Operands, tolerances and the dense fp64 oracle of the kernel tests."""

import warnings

import torch
import torch.nn.functional as F

# The oracle gets the operands as rounded to the dtype. fp32: sums of a few hundred products in
# another order. fp16 and bf16: 2 to 4 roundings, of the intermediate and of the output, with a
# unit roundoff of 2^-11 and 2^-8.
TOLERANCE = {  # relative and absolute
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


WEIGHTS = {  # operands between x and the epilogue
    "linear": 1,
    "low_rank_linear": 2,
    "block_sparse_linear": 3,
    "sparse_low_rank_linear": 5,
}


def launcher(kernels, stem, **fixed):
    """The launcher as a function of x, its weights, bias, residual, activation and norm."""
    fwd, weights = getattr(getattr(kernels, stem), f"{stem}_fwd"), 1 + WEIGHTS[stem]

    def call(*args, **kwargs):
        steps = dict(zip(("bias", "residual", "activation", "norm"), args[weights:], strict=False))
        steps |= {n: kwargs.pop(n) for n in kernels.epilogue.Epilogue._fields if n in kwargs}
        return fwd(*args[:weights], kernels.epilogue.Epilogue(**steps), **kwargs, **fixed)

    return call


def ffn_launcher(kernels, **fixed):
    """The feed-forward's launcher as a function of operands in the order of `low_rank_ffn_ref`."""
    fwd, epilogue = kernels.low_rank_ffn.low_rank_ffn_fwd, kernels.epilogue.Epilogue

    def call(*operands, residual=None, activation="gelu", norm=None, exact_gelu=False, **kwargs):
        x, u1, v1, bias1, u2, v2, bias2, *given = operands
        residual, activation = [*given, *(residual, activation)[len(given) :]]
        first = epilogue(bias1, activation, exact_gelu=exact_gelu)
        last = epilogue(bias2, residual=residual, norm=norm)
        return fwd(x, u1, v1, u2, v2, first, last, **kwargs, **fixed)

    return call


def token_counts(device):
    """Numbers of tokens up to 300, and large ones that no tile divides."""
    large = [4736] if device.type == "cpu" else [4736, 65535]  # the interpreter is slow
    return [*range(301), *large]


def dense_oracle(x, weight, bias=None, residual=None, activation="none", norm=None):
    """``LN(activation(x @ weight.T + bias) + residual)`` in fp64; weight (N, K)."""
    y = x.double() @ weight.double().T
    if bias is not None:
        y = y + bias.double()
    y = ACTIVATIONS[activation](y)
    if residual is not None:
        y = y + residual.double()
    if norm is not None:
        weight, bias, eps = norm
        y = F.layer_norm(y, weight.shape, weight.double(), bias.double(), eps)
    return y


def assert_matches(y, want):
    """`y` has the shape and the values of the fp64 `want`, to the tolerance of its dtype."""
    bound = TOLERANCE[y.dtype]
    torch.testing.assert_close(y.double(), want, rtol=bound, atol=bound)


def normal(*shape, dtype, device, scale=1.0):
    return (torch.randn(*shape, dtype=torch.float64) * scale).to(device, dtype)


def layer_norm(n, dtype, device):
    """Weight, bias and eps of a LayerNorm over n features."""
    kind = {"dtype": dtype, "device": device}
    return normal(n, **kind) + 1, normal(n, **kind), 1e-5


def factors(n, k, rank, dtype, device):
    """u (N, R) and v (R, K), scaled so that x @ (u @ v).T keeps the variance of x."""
    u = normal(n, rank, dtype=dtype, device=device, scale=rank**-0.5)
    return u, normal(rank, k, dtype=dtype, device=device, scale=k**-0.5)


def sparse_weight(pattern, block, dtype, device):
    """Dense W (N, K) with a random block wherever the boolean `pattern` is true, as rounded."""
    rows, cols = block
    mask = pattern.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
    scale = max(1, int(mask.sum(1).max())) ** -0.5
    weight = torch.randn(mask.shape, dtype=torch.float64) * scale * mask
    return weight.to(device, dtype)


def to_bsr(weight, block, column_major=True):
    """crow_indices, col_indices, values of the non-zero blocks, by torch's own conversion."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: BSR support is in beta
        bsr = weight.cpu().float().to_sparse_bsr(block)
    values = bsr.values().to(weight.device, weight.dtype)
    if column_major:
        values = values.transpose(1, 2).contiguous().transpose(1, 2)
    indices = (bsr.crow_indices(), bsr.col_indices())
    return *(i.to(weight.device, torch.int32) for i in indices), values


def random_pattern(rows, cols, density):
    return torch.rand(rows, cols) < density


def fenced(tensor, fence):
    """The same tensor, dense, in the middle of a buffer filled with `fence`."""
    pad = 4096
    buffer = tensor.new_full((pad + tensor.numel() + pad,), fence)
    view = buffer[pad:-pad].view(tensor.shape)
    return view.copy_(tensor)


def row_strided(tensor, fence=float("nan")):
    """The same matrix with `fence` in the gap between its rows and around it."""
    rows, cols = tensor.shape
    buffer = tensor.new_full((rows + 8, cols + 80), fence)
    view = buffer[4:-4, 64:-16]
    return view.copy_(tensor)


def far_apart_rows(m, k):
    """A matrix whose last rows lie 2^31 elements behind the first; takes m pages of memory.

    Its row stride fits in 32 bits, so that only the product with the row number overflows.
    """
    stride = 2**31 // (m - 1) + 1
    buffer = torch.empty(stride * (m - 1) + k, dtype=torch.float16)
    x = buffer.as_strided((m, k), (stride, 1))
    return x.copy_(normal(m, k, dtype=torch.float16, device="cpu"))
