import pytest
import torch
from torch import nn

from lada_kernels.table import Key
from lada_ops import BlockSparseLinear, LowRankFFN, LowRankLinear, SparseLowRankLinear
from lada_ops.tune import Case, cases_of
from tests.engine.models import compress
from tests.tiny_encoders import tiny_bert


def test_a_shape_is_parsed_into_its_bucket():
    case = Case.parse(" 768x3072:r100:fused ", 1000, "float16")
    assert case == Case(768, 3072, "r128", "fused", 1024, "float16")
    assert case.key == Key("float16", 768, 3072, "r128", "fused")
    assert case.stem == "low_rank_linear"


def test_a_shape_without_an_epilogue_is_plain():
    assert Case.parse("768x768:128x16-d11", 1).epilogue == "plain"


@pytest.mark.parametrize("text", ["768:r64", "768x:r64", "axb:r64", "768x768", "768x768:r64:a:b"])
def test_a_malformed_shape_is_refused(text):
    with pytest.raises(ValueError, match="expected such as 768x3072:r128"):
        Case.parse(text, 16)


@pytest.mark.parametrize("tokens", [0, -5])
def test_tokens_below_1_are_refused(tokens):
    for make in (lambda: Case.parse("8x8:r64", tokens), lambda: cases_of(nn.ReLU(), [tokens])):
        with pytest.raises(ValueError, match=f"tokens {tokens}; expected 1 or more"):
            make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epilogue": "gelu"}, "epilogue 'gelu'; expected one of"),
        ({"dtype": "float64"}, "dtype 'float64'; expected one of"),
        ({"weight": "rank64"}, "weight 'rank64'; expected such as r128"),
        ({"tokens": 0}, "expected positive sizes"),
        ({"k": 0}, "expected positive sizes"),
        ({"weight": "r32x3", "n": 100}, "n 100; expected a multiple of 3"),
        ({"weight": "128x16-d20", "n": 100}, "does not divide the weight"),
        ({"weight": "128x16-d20", "k": 100}, "does not divide the weight"),
    ],
)
def test_a_case_that_does_not_fit_is_refused(changes, message):
    given = {"k": 768, "n": 768, "weight": "r64", "tokens": 16} | changes
    with pytest.raises(ValueError, match=message):
        Case(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": "r100"}, "weight 'r100'; expected that of its bucket, r128"),
        ({"tokens": 100}, "tokens a power of two"),
    ],
)
def test_a_case_outside_its_bucket_has_no_key(changes, message):
    case = Case(**({"k": 768, "n": 768, "weight": "r64", "tokens": 16} | changes))
    with pytest.raises(ValueError, match=message):
        _ = case.key


def test_a_models_cases_are_its_distinct_compressed_linears_by_tokens():
    model = nn.Sequential(
        LowRankLinear(64, 128, 8),
        LowRankLinear(64, 128, 24),  # of the same bucket
        nn.Linear(128, 128),
        LowRankLinear(64, 128, 40, activation="gelu"),
        BlockSparseLinear(64, 128, (16, 16), 0.25),
        SparseLowRankLinear(64, 128, 8, (16, 16), 0.25),
    ).to(torch.float16)
    ops = [
        ("r32", "plain"),
        ("r64", "fused"),
        ("16x16-d30", "plain"),
        ("r32+16x16-d30", "plain"),
    ]
    assert cases_of(model, [100, 128, 16]) == [
        Case(64, 128, weight, epilogue, tokens, "float16")
        for tokens in (128, 16)
        for weight, epilogue in ops
    ]


def test_a_model_in_a_dtype_without_kernels_has_no_cases():
    assert cases_of(LowRankLinear(64, 128, 8).double(), [16]) == []


@pytest.mark.parametrize(("norm_eps", "epilogue"), [(1e-12, "norm"), (None, "fused")])
def test_a_feed_forward_is_a_case_and_its_two_linears_are(norm_eps, epilogue):
    model = LowRankFFN(64, 128, 64, 8, 40, norm_eps=norm_eps)
    assert cases_of(model, [16]) == [
        Case(64, 64, "r32-128-r64", epilogue, 16, "float32"),
        Case(64, 128, "r32", "fused", 16, "float32"),
        Case(128, 64, "r64", epilogue, 16, "float32"),
    ]


def test_an_encoder_gives_its_fused_ops_and_its_linears():
    model = compress(tiny_bert(), "low_rank")
    found = [(case.k, case.n, case.weight, case.epilogue) for case in cases_of(model, [16])]
    fused = [
        (32, 96, "r32x3", "plain"),
        (32, 32, "r32", "norm"),
        (32, 32, "r32-64-r32", "norm"),
        (32, 64, "r32", "fused"),
        (64, 32, "r32", "norm"),
    ]
    linears = [(32, 32, "r32", "plain"), (32, 64, "r32", "plain"), (64, 32, "r32", "plain")]
    assert found == fused + linears


def test_a_models_cases_are_in_the_compute_dtype():
    (case,) = cases_of(LowRankLinear(64, 128, 8).double(), [16], "bfloat16")
    assert case.dtype == "bfloat16"
