"""Activations of the kernels, fp32 to fp32.

They use only arithmetic and exp2 of an argument that cannot overflow into NaN, so they run in the
interpreter and on every target. Infinities give the limit (``gelu(-inf) == 0``, where torch gives
NaN), and NaN stays NaN.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _gelu(x):
    # x Phi(x) = relu(x) - |x|/2 erfc(|x|/sqrt(2)); erfc is 7.1.26 of Abramowitz and Stegun. The
    # error in gelu is 3.4e-7, below that of torch in fp32, at half the cost of tl.erf.
    a = tl.minimum(tl.abs(x), 16.0)  # erfc is 0 from there on, and inf * 0 must not appear
    t = 1.0 / (1.0 + 0.231641888 * a)
    p = 0.710706871 + t * (-0.726576014 + t * 0.530702715)
    p = a * t * (0.127414796 + t * (-0.142248368 + t * p))
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - p * tl.exp2(-0.721347520 * a * a)


@triton.jit
def _gelu_poly(x):
    # Phi(x) = 1/2 + x P(x^2) with P of degree 6, fitted to keep the error of x Phi(x) small
    # wherever |x| <= c, and c P(c^2) = 1/2; nothing but multiplications and additions
    low = tl.maximum(x, -3.95, propagate_nan=tl.PropagateNan.ALL)
    z = tl.minimum(low, 3.95, propagate_nan=tl.PropagateNan.ALL)
    s = z * z
    p = -1.68115551e-06 + s * 2.44358320e-08
    p = -0.000829040064 + s * (4.95520064e-05 + s * p)
    p = 0.397986697 + s * (-0.0647227561 + s * (0.00884292155 + s * p))
    return low * (0.5 + z * p)


@triton.jit
def _scaled_sigmoid(x, z):
    # x / (1 + e^-z) with z in units of ln 2; z > -126, for exp2 to stay finite
    return x / (1.0 + tl.exp2(-z))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """``ACTIVATION(x)`` for none, relu, gelu (erf), gelu_poly, gelu_tanh, silu or tanh.

    gelu is erf's to 3.4e-7, gelu_poly to 2e-4 in half the instructions.
    """
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        return _gelu(x)
    elif ACTIVATION == "gelu_poly":
        return _gelu_poly(x)
    elif ACTIVATION == "gelu_tanh":
        x = tl.maximum(x, -10.0, propagate_nan=tl.PropagateNan.ALL)
        return _scaled_sigmoid(x, x * (2.30220820 + 0.102943240 * x * x))
    elif ACTIVATION == "silu":
        x = tl.maximum(x, -87.0, propagate_nan=tl.PropagateNan.ALL)
        return _scaled_sigmoid(x, 1.44269504 * x)
    elif ACTIVATION == "tanh":
        e = tl.exp2(-2.88539008 * tl.abs(x))
        t = (1.0 - e) / (1.0 + e)
        return tl.where(x < 0.0, -t, t)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown ACTIVATION")
        return x


def kernel_activation(activation: str, dtype: torch.dtype, exact_gelu: bool) -> str:
    """ACTIVATION of a kernel whose output is of `dtype`.

    In 16-bit dtypes gelu is a polynomial within 2e-4 of erf's, unless `exact_gelu`; in fp32 it is
    always erf's.
    """
    if activation == "gelu" and dtype != torch.float32 and not exact_gelu:
        return "gelu_poly"
    return activation
