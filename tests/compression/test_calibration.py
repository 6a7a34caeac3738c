import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BatchEncoding

from lada_ops.architectures.encoders import encoder_linears
from lada_ops.compression.calibration import LayerStatistics, layer_statistics, statistics_of
from tests.tiny_encoders import ARCHITECTURES, batch, tiny_bert, with_head

QUERY = "encoder.layer.0.attention.self.query"
BATCHES = [batch(3, 9), batch(2, 5, seed=1)]


def grams(model, batches, names=None):
    found = statistics_of(model, names or list(encoder_linears(model)), batches, True)
    return {name: seen.inputs for name, seen in found.items()}


@torch.no_grad()
def inputs_of(model, inputs, names):
    """Inputs of each linear, in fp64."""
    seen, handles = {}, []
    for name in names:
        keep = lambda _, args, name=name: seen.__setitem__(name, args[0].double())  # noqa: E731
        handles.append(model.get_submodule(name).register_forward_pre_hook(keep))
    model(**inputs)
    for handle in handles:
        handle.remove()
    return seen


def brute_force(model, batches, names):
    """Second moments, token by token: the mean of the outer products."""
    sums, tokens = {}, dict.fromkeys(names, 0)
    for inputs in batches:
        for name, x in inputs_of(model, inputs, names).items():
            for row, kept in zip(x, inputs["attention_mask"], strict=True):
                for token, real in zip(row, kept, strict=True):
                    if real:
                        sums[name] = sums.get(name, 0) + torch.outer(token, token)
                        tokens[name] += 1
    return {name: sums[name] / tokens[name] for name in names}


def states(model):
    """State that calibration must not change: tensors, modes, number of hooks."""
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: module.training for name, module in model.named_modules()},
        sum(len(module._forward_hooks) for module in model.modules()),
        {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()},
    )


def assert_unchanged(model, before):
    tensors, *rest = states(model)
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in tensors.items())
    assert tuple(rest) == before[1:]


class Lone(nn.Module):
    """One linear that gets the very tensor the caller passed."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, attention_mask=None):
        return self.linear(x)


def test_grams_are_those_of_every_real_token():
    model = tiny_bert()
    names = list(encoder_linears(model))
    got, want = grams(model, BATCHES), brute_force(model, BATCHES, names)
    assert list(got) == names
    for name in names:
        assert got[name].dtype == torch.float64
        torch.testing.assert_close(got[name], want[name])


@pytest.mark.parametrize("name", ["distilbert", "mpnet", "modernbert", "deberta-v2"])
def test_grams_of_other_architectures(name):
    model = with_head(name)
    names = [n for n in encoder_linears(model) if n.endswith(("dense", "lin2", "Wo", "attn.v"))]
    got, want = grams(model, BATCHES, names), brute_force(model, BATCHES, names)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_gets_a_gram(name):
    model = with_head(name)
    got = grams(model, [batch()])
    assert set(got) == set(encoder_linears(model))
    assert all(gram.diagonal().min() >= 0 for gram in got.values())


def test_padding_changes_nothing():
    model, short = tiny_bert(), batch(1, 6)
    padded = {name: nn.functional.pad(tensor, (0, 5)) for name, tensor in short.items()}
    got, want = grams(model, [padded]), grams(model, [short])
    for name, gram in want.items():
        torch.testing.assert_close(got[name], gram, rtol=1e-4, atol=1e-5)


def test_without_a_mask_all_tokens_count():
    model, ids = tiny_bert(), batch(2, 6)["input_ids"]
    got = grams(model, [{"input_ids": ids}])
    want = brute_force(model, [{"input_ids": ids, "attention_mask": torch.ones(2, 6)}], [QUERY])
    torch.testing.assert_close(got[QUERY], want[QUERY])


def test_a_mask_of_booleans_is_a_mask():
    model, inputs = tiny_bert(), batch()
    masked = inputs | {"attention_mask": inputs["attention_mask"].bool()}
    torch.testing.assert_close(grams(model, [masked]), grams(model, [inputs]))


def test_batches_weigh_by_their_tokens():
    model = Lone()
    batches = [{"x": torch.ones(1, 1, 4)}, {"x": 3 * torch.ones(1, 3, 4)}]
    got = grams(model, batches, ["linear"])["linear"]
    torch.testing.assert_close(got, torch.full((4, 4), (1 + 3 * 9) / 4, dtype=torch.float64))


def test_query_key_and_value_get_the_same_gram_each_its_own():
    model = tiny_bert()
    got = grams(model, BATCHES)
    query, key, value = (got[QUERY.replace("query", n)] for n in ("query", "key", "value"))
    assert torch.equal(query, key)
    assert torch.equal(query, value)
    query.zero_()
    assert key.any()


def test_query_key_and_value_share_one_product():
    model, products = tiny_bert(), []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and out.dtype == torch.float64:
                products.append(out)
            return out

    with Count():
        grams(model, [batch()])
    assert len(products) == 2 * 4  # per layer: attention's input and output, and the two of the FFN


def test_one_tensor_in_two_batches_is_masked_by_each():
    model, x = Lone(), torch.randn(1, 2, 4)
    first, second = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
    got = grams(model, [{"x": x, "attention_mask": m} for m in (first, second)], ["linear"])
    want = (x[0].T @ x[0]).double() / 2
    torch.testing.assert_close(got["linear"], want, rtol=1e-5, atol=1e-6)


def test_a_generator_is_read_once():
    model = tiny_bert()
    torch.testing.assert_close(grams(model, (b for b in BATCHES)), grams(model, BATCHES))


def test_what_a_tokenizer_returns_is_a_batch():
    model = tiny_bert()
    torch.testing.assert_close(grams(model, [BatchEncoding(batch())]), grams(model, [batch()]))


def test_half_precision_models_give_grams_in_fp64():
    assert grams(tiny_bert().bfloat16(), [batch()])[QUERY].dtype == torch.float64


def test_large_inputs_do_not_overflow():
    got = grams(Lone().half(), [{"x": torch.full((1, 2, 4), 6e4).half()}], ["linear"])
    assert got["linear"].isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(training):
    model = tiny_bert().train(training)
    before = states(model)
    grams(model, BATCHES)
    assert_unchanged(model, before)


def test_modes_of_submodules_are_kept():
    model = tiny_bert().train()
    model.encoder.layer[1].eval()
    before = states(model)
    grams(model, BATCHES)
    assert_unchanged(model, before)


def test_model_runs_in_eval_mode():
    model = tiny_bert(hidden_dropout_prob=0.9).train()
    torch.testing.assert_close(grams(model, BATCHES), grams(model, BATCHES))


def test_no_gradients_are_recorded():
    assert not grams(tiny_bert(), BATCHES)[QUERY].requires_grad


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_model_is_left_as_it_was_when_batches_fail(error):
    def batches():
        yield batch()
        raise error

    model = tiny_bert().train()
    before = states(model)
    with pytest.raises(error):
        grams(model, batches())
    assert_unchanged(model, before)


def test_model_is_left_as_it_was_when_it_fails():
    model = tiny_bert().train()
    before = states(model)
    with pytest.raises(IndexError):
        grams(model, [batch(), {"input_ids": torch.tensor([[9999]])}])
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("wrong", "name"), [("text", "str"), (torch.ones(2, 3), "Tensor"), ([1, 2], "list")]
)
def test_refuses_a_batch_that_is_no_dict(wrong, name):
    model = tiny_bert().train()
    before = states(model)
    with pytest.raises(TypeError, match=f"calibration: batch 1 is {name}; expected a dict"):
        grams(model, [batch(), wrong])
    assert_unchanged(model, before)


@pytest.mark.parametrize("batches", [[], iter(())], ids=["list", "iterator"])
def test_refuses_no_batches(batches):
    with pytest.raises(ValueError, match=r"calibration: no batches; .* read to its end before"):
        grams(tiny_bert(), batches)


def test_refuses_batches_of_padding_alone():
    masked = batch() | {"attention_mask": torch.zeros(3, 9, dtype=torch.long)}
    with pytest.raises(ValueError, match=r"no token reached .*query and 11 more; expected"):
        grams(tiny_bert(), [masked])


def test_a_batch_of_padding_alone_adds_nothing():
    model = tiny_bert()
    masked = batch() | {"attention_mask": torch.zeros(3, 9, dtype=torch.long)}
    torch.testing.assert_close(grams(model, [batch(), masked]), grams(model, [batch()]))


def test_refuses_a_linear_that_never_runs():
    model = Lone()
    model.add_module("spare", nn.Linear(4, 4))
    with pytest.raises(ValueError, match="no token reached spare; expected"):
        grams(model, [{"x": torch.ones(1, 2, 4)}], ["linear", "spare"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_inputs_that_are_not_finite(value):
    x = torch.ones(1, 2, 4)
    x[0, 1, 2] = value
    with pytest.raises(ValueError, match="the inputs of linear hold NaN or infinity"):
        grams(Lone(), [{"x": x}], ["linear"])


def test_values_of_padding_may_be_anything():
    x = torch.ones(1, 2, 4)
    x[0, 1] = float("nan")
    inputs = {"x": x, "attention_mask": torch.tensor([[1, 0]])}
    assert torch.equal(grams(Lone(), [inputs], ["linear"])["linear"], torch.ones(4, 4).double())


def test_quiet_prints_nothing(capfd):
    grams(tiny_bert(), BATCHES)
    assert capfd.readouterr() == ("", "")


def test_no_bar_where_nobody_watches(capfd):
    layer_statistics(tiny_bert(), BATCHES)
    assert capfd.readouterr() == ("", "")


class TestStatisticsOf:
    def test_no_calibration_gives_none(self):
        assert statistics_of(tiny_bert(), [QUERY], None, True) == {}

    def test_batches_and_what_was_made_of_them_are_the_same(self):
        model = tiny_bert()
        given = layer_statistics(model, BATCHES, quiet=True)
        from_batches = statistics_of(model, [QUERY], BATCHES, True)
        from_given = statistics_of(model, [QUERY], given, True)
        assert from_batches.keys() == from_given.keys() == {QUERY}
        assert torch.equal(from_batches[QUERY].inputs, from_given[QUERY].inputs)

    @pytest.mark.parametrize(
        ("calibration", "message"),
        [
            pytest.param({}, f"NoneType for {QUERY}", id="none of this layer"),
            pytest.param({QUERY: torch.eye(32)}, "Tensor for", id="a matrix alone"),
            pytest.param(
                {QUERY: LayerStatistics(torch.eye(3), torch.ones(32), torch.eye(32))},
                r"\(3, 3\) for .* its inputs",
                id="another size of inputs",
            ),
            pytest.param(
                {QUERY: LayerStatistics(torch.eye(32), torch.ones(3), torch.eye(32))},
                r"\(3,\) for .* its mean",
                id="another size of the mean",
            ),
            pytest.param(
                {QUERY: LayerStatistics(torch.eye(32), torch.ones(32), torch.eye(3))},
                r"\(3, 3\) for .* its outputs",
                id="another size of outputs",
            ),
            pytest.param(
                {QUERY: LayerStatistics(torch.eye(32) * torch.nan, torch.ones(32), torch.eye(32))},
                "the inputs of .* hold NaN",
                id="NaN",
            ),
            pytest.param(batch(), "a single one goes in a list", id="a single batch"),
            pytest.param(BatchEncoding(batch()), "goes in a list", id="a single BatchEncoding"),
        ],
    )
    def test_refuses(self, calibration, message):
        with pytest.raises(ValueError, match=message):
            statistics_of(tiny_bert(), [QUERY], calibration, True)

    def test_they_are_taken_to_fp64(self):
        given = {QUERY: LayerStatistics(torch.eye(32), torch.ones(32), torch.eye(32))}
        assert statistics_of(tiny_bert(), [QUERY], given, True)[QUERY].inputs.dtype == torch.float64
