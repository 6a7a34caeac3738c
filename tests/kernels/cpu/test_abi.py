"""Constants and structures that stand both in `abi` and in the C++ sources."""

import ctypes
import re
from pathlib import Path

import pytest
import torch

from lada_kernels.cpu import abi
from lada_ops.engine.find import FEATURES_MULTIPLE

FOLDER = Path(abi.__file__).parent
SOURCES = "\n".join(path.read_text() for path in [*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")])
DTYPES = {"FP32": torch.float32, "BF16": torch.bfloat16, "INT8": torch.int8}
ELEMENTS = {"float": torch.float32, "bf16": torch.bfloat16, "quantized": torch.int8}
NUMBERS = {"float": ctypes.c_float, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}
STRUCTURES = [abi.Panels, abi.Linear, abi.LayerNorm, abi.Layer, abi.Encoder]


def enumerators(name):
    match = re.search(rf"enum {name} {{(.*?)}}", SOURCES)
    assert match is not None
    return match[1].replace(",", " ").split()


def fields(name):
    """Names and C types of a structure's fields, in order; pointers end with a star."""
    match = re.search(rf"^struct {name} {{\n(.*?)^}};", SOURCES, re.MULTILINE | re.DOTALL)
    assert match is not None
    for line in re.sub("//.*", "", match[1]).split(";"):
        if line.strip():
            c_type, names = line.replace("const ", "").split(maxsplit=1)
            yield from ((field.strip(), c_type) for field in names.split(","))


def is_pointer(field_type):
    return field_type is ctypes.c_void_p or hasattr(field_type, "contents")


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.__name__)
def test_structures_have_the_fields_of_the_headers(structure):
    declared = dict(fields(structure.__name__))
    assert list(declared) == [name for name, _ in structure._fields_]
    for name, field_type in structure._fields_:
        c_type = declared[name]
        if c_type.endswith("*"):
            assert is_pointer(field_type), name
        else:
            assert field_type is NUMBERS.get(c_type, getattr(abi, c_type, None)), name


def test_dtypes_have_the_codes_of_the_enum():
    assert {DTYPES[name]: i for i, name in enumerate(enumerators("Dtype"))} == abi.DTYPES


def test_activations_have_the_codes_of_the_enum():
    codes = {name.lower(): i for i, name in enumerate(enumerators("Activation"))}
    assert codes == abi.ACTIVATIONS


def test_groups_have_the_sizes_of_the_headers():
    pattern = r"struct Group<(\w+)> {.*?int SIZE = (\d+);"
    sizes = re.findall(pattern, SOURCES, re.DOTALL)
    assert {ELEMENTS[name]: int(size) for name, size in sizes} == abi.GROUP_SIZE


@pytest.mark.parametrize("name", ["TILE_DEPTH", "MAX_NR"])
def test_constants_are_those_of_the_headers(name):
    (value,) = re.findall(rf"constexpr int {name} = (\d+);", SOURCES)
    assert getattr(abi, name) == int(value)


def test_queries_keys_and_values_of_the_engine_fill_whole_panels():
    assert FEATURES_MULTIPLE == abi.MAX_NR
