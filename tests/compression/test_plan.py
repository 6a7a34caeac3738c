import json
from dataclasses import replace

import pytest
from hypothesis import given as with_any

from lada_ops import CompressionPlan, LayerPlan, plan
from lada_ops.compression.plan import METHODS
from tests.properties import FEW, NO_JSON, damaged, same

RATIOS = [1.5, 2, 2.5, 3.7, 5, 10, 20]
LOW_RANK = {"format": "low_rank", "in_features": 32, "out_features": 48, "rank": 8}
SPARSE = {
    "format": "block_sparse",
    "in_features": 32,
    "out_features": 48,
    "block": [16, 8],
    "density": 0.25,
}


class TestLayerPlan:
    def test_block_from_json_is_a_tuple(self):
        assert LayerPlan(**SPARSE).block == (16, 8)  # type: ignore[arg-type]

    @pytest.mark.parametrize("given", [LOW_RANK, SPARSE], ids=lambda given: given["format"])
    def test_to_dict_leaves_out_what_is_none(self, given):
        made = LayerPlan(**given).to_dict()
        assert json.loads(json.dumps(made)) == given

    @pytest.mark.parametrize(
        ("given", "change", "message"),
        [
            (LOW_RANK, {"format": "dense"}, "format 'dense'; expected one of"),
            (LOW_RANK, {"rank": None}, "rank None for format 'low_rank'; expected a value"),
            (LOW_RANK, {"rank": 0}, "rank 0"),
            (LOW_RANK, {"rank": -4}, "rank -4"),
            (LOW_RANK, {"rank": 33}, r"rank 33 .*\(48, 32\); expected 1 to 32"),
            (LOW_RANK, {"rank": 2.5}, "rank 2.5; expected"),
            (LOW_RANK, {"rank": "8"}, "rank '8'; expected"),
            (LOW_RANK, {"rank": True}, "rank True; expected"),
            (LOW_RANK, {"in_features": 0}, "in_features 0"),
            (LOW_RANK, {"out_features": "48"}, "out_features '48'"),
            (LOW_RANK, {"block": (16, 8)}, r"block \(16, 8\) for format 'low_rank'; expected None"),
            (LOW_RANK, {"density": 0.5}, "density 0.5 for format 'low_rank'; expected None"),
            (SPARSE, {"rank": 4}, "rank 4 for format 'block_sparse'; expected None"),
            (SPARSE, {"block": None}, "block None for format 'block_sparse'; expected a value"),
            (SPARSE, {"block": [16]}, r"block \(16,\)"),
            (SPARSE, {"block": 16}, "block 16; expected"),
            (SPARSE, {"block": "16"}, "block '16'; expected"),
            (SPARSE, {"block": [16.0, 8.0]}, r"block \[16.0, 8.0\]; expected"),
            (SPARSE, {"block": [16, -8]}, r"block \[16, -8\]; expected"),
            (SPARSE, {"block": [7, 8]}, r"block \(7, 8\) does not divide .*blocks that do: \{16\}"),
            (SPARSE, {"density": -0.1}, "density -0.1; expected 0 to 1"),
            (SPARSE, {"density": 1.1}, "density 1.1; expected 0 to 1"),
            (SPARSE, {"density": float("nan")}, "density nan; expected 0 to 1"),
            (SPARSE, {"density": "0.5"}, "density '0.5'; expected 0 to 1"),
            (SPARSE, {"density": True}, "density True; expected 0 to 1"),
            (SPARSE, {"density": 10**400}, "density 1000"),
            (LOW_RANK, {"in_features": 2**63}, "in_features 9223372036854775808"),
            (SPARSE, {"block": [16, 2**63]}, "block .16, 9223372036854775808.; expected"),
            (SPARSE, {"format": "sparse_low_rank"}, "rank None"),
        ],
        ids=lambda case: str(case)[:70],
    )
    def test_refuses(self, given, change, message):
        with pytest.raises(ValueError, match=f"LayerPlan: .*{message}"):
            LayerPlan(**(given | change))


CHOICES = {"objective": "auto", "selection": "wanda"}


class TestCompressionPlan:
    @pytest.mark.parametrize("method", METHODS)
    def test_json_round_trip(self, bert_base, method):
        made = plan(bert_base, 4, method, objective="weights")
        assert CompressionPlan.from_json(made.to_json()) == made

    def test_json_can_be_read(self):
        made = CompressionPlan({"a.b": LayerPlan(**LOW_RANK)}, "weights")  # type: ignore[arg-type]
        want = {"objective": "weights", "selection": "wanda", "layers": {"a.b": LOW_RANK}}
        assert json.loads(made.to_json()) == want
        assert made.to_json().count("\n") > 5

    def test_blocks_are_selected_by_size_where_nothing_is_said(self):
        made = CompressionPlan.from_dict({"objective": "auto", "layers": {}})
        assert made.selection == "wanda"

    def test_plan_can_be_changed_by_hand(self, bert_base):
        made = plan(bert_base)
        name = "encoder.layer.0.output.dense"
        changed = replace(made, layers={**made.layers, name: LayerPlan("low_rank", 3072, 768, 16)})
        assert changed.layers[name].rank == 16
        assert made.layers[name].rank != 16

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([], "CompressionPlan: list; expected an object"),
            ({}, r"missing \['layers', 'objective'\], unknown \[\]"),
            ({"layers": {}}, r"missing \['objective'\]"),
            ({"layers": {}, **CHOICES, "colour": 1}, r"unknown \['colour'\]"),
            (
                {"layers": {}, **CHOICES, "objective": "beauty"},
                "objective 'beauty'; expected one of",
            ),
            (
                {"layers": {}, **CHOICES, "selection": "luck"},
                "CompressionPlan: selection 'luck'; expected one of",
            ),
            ({"layers": [], **CHOICES}, "layers is list; expected an object"),
            ({"layers": {"a": 3}, **CHOICES}, "layer 'a': int; expected an object"),
            ({"layers": {"a": {}}, **CHOICES}, r"layer 'a': missing \['format', 'in_"),
            (
                {"layers": {"a": LOW_RANK | {"ranks": 3}}, **CHOICES},
                r"layer 'a': missing \[\], unknown \['ranks'\]",
            ),
            (
                {"layers": {"a": LOW_RANK | {"rank": 99}}, **CHOICES},
                "layer 'a': LayerPlan: rank 99",
            ),
        ],
        ids=str,
    )
    def test_refuses_other_data(self, data, message):
        with pytest.raises(ValueError, match=message):
            CompressionPlan.from_json(json.dumps(data))

    @pytest.mark.parametrize("text", ["", "plan", '{"layers": '])
    def test_refuses_what_is_no_json(self, text):
        with pytest.raises(ValueError, match="CompressionPlan: .*line 1 column"):
            CompressionPlan.from_json(text)

    @pytest.mark.parametrize("text", NO_JSON, ids=lambda text: text[:9])
    def test_refuses_what_no_file_should_hold(self, text):
        with pytest.raises(ValueError, match="CompressionPlan: "):
            CompressionPlan.from_json(text.decode("latin1"))

    def test_refuses_layers_that_are_no_mapping(self):
        with pytest.raises(TypeError, match="CompressionPlan: layers is list; expected a mapping"):
            CompressionPlan([])  # type: ignore[arg-type]

    def test_refuses_keys_that_are_no_text(self):
        with pytest.raises(ValueError, match="unknown \\[1, 'b'\\]"):
            CompressionPlan.from_dict({"objective": "auto", "layers": {}, 1: 2, "b": 3})  # type: ignore[dict-item]

    @FEW
    @with_any(content=damaged({"layers": {"a": LOW_RANK, "b": SPARSE}, **CHOICES}))
    def test_reads_what_is_there_or_names_what_is_wrong(self, content):
        try:
            read = CompressionPlan.from_json(json.dumps(content))
        except ValueError as error:
            message = str(error)
        else:
            assert same(read.to_dict(), {"selection": "wanda"} | content)
            return
        assert message.startswith("CompressionPlan: ")
