"""Constants and structures of the C interface (`abi.cpp` and its headers), for ctypes.

Structures repeat those of the headers field by field; a test compares all that stands in both.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p

import numpy as np
import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Code of each weight dtype (`Dtype`); with int8 weights x and y are fp32."""
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "tanh": 5}
"""Code of each activation (`Activation`)."""
GROUP_SIZE = {torch.float32: 1, torch.bfloat16: 2, torch.int8: 4}
"""Elements of a VNNI group, which is 32 bits of consecutive k (`Group<T>::SIZE`)."""
TILE_DEPTH = 16
"""VNNI groups of an AMX tile along K."""
MAX_NR = 32
"""Columns of a wide panel: two AMX tiles or AVX-512 vectors."""
MIN_NR = 16
"""Columns of a narrow panel: one AMX tile or AVX-512 vector."""


class Panels(Structure):
    _fields_ = [
        ("values", c_void_p),
        ("group_offsets", c_void_p),
        ("segment_offsets", c_void_p),
        ("segment_starts", c_void_p),
        ("segment_lengths", c_void_p),
        ("scales", c_void_p),
        ("compensation", c_void_p),
        ("count", c_int32),
        ("nr", c_int32),
        ("tail", c_int32),
    ]


class Linear(Structure):
    _fields_ = [
        ("v", Panels),
        ("sparse_u", Panels),
        ("bias", c_void_p),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("activation", c_int32),
    ]


class LayerNorm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_float)]


def layer_norm(norm: tuple[np.ndarray, np.ndarray, float] | None) -> LayerNorm:
    """Structure that points into weight and bias, fp32, which must outlive it."""
    if norm is None:
        return LayerNorm(None, None, 0.0)
    return LayerNorm(norm[0].ctypes.data, norm[1].ctypes.data, norm[2])


class Layer(Structure):
    _fields_ = [
        ("qkv", Linear),
        ("attention_output", Linear),
        ("intermediate", Linear),
        ("output", Linear),
        ("input_norm", LayerNorm),
        ("attention_norm", LayerNorm),
        ("output_norm", LayerNorm),
        ("cos_sin", c_void_p),
        ("window", c_int64),
        ("gate", c_int32),
    ]


class Encoder(Structure):
    _fields_ = [
        ("layers", POINTER(Layer)),
        ("layer_count", c_int32),
        ("heads", c_int32),
        ("pre_norm", c_int32),
        ("features", c_int64),
        ("scale", c_float),
        ("position_bias", c_void_p),
        ("reach", c_int64),
    ]


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the argument types of the library's functions; return it."""
    pointer, size = c_void_p, c_int64
    library.lada_linear.argtypes = [
        *(c_int, POINTER(Linear), POINTER(LayerNorm), pointer, size, size),
        *(pointer, size, pointer, size, c_int),
    ]
    library.lada_equal.argtypes = [size, pointer, pointer, pointer]
    library.lada_encoder.argtypes = [c_int, POINTER(Encoder), pointer, size, pointer, c_int]
    return library
