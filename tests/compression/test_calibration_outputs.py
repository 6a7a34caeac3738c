"""Second moments of the output gradients; those of the inputs are in test_calibration.py."""

import pytest
import torch

from lada_ops.compression.calibration import layer_statistics
from tests.tiny_encoders import batch, tiny_bert, with_head

QUERY = "encoder.layer.0.attention.self.query"
BATCHES = [batch(3, 9), batch(2, 5, seed=1)]


def jacobian(model, inputs, name):
    """Jacobian (model outputs at real tokens, tokens, out) by the outputs of a linear."""
    kept, real = [], inputs["attention_mask"].bool()
    linear = model.get_submodule(name)
    handle = linear.register_forward_hook(lambda _, __, output: kept.append(output))
    answer = model(**inputs).last_hidden_state[real].flatten()
    handle.remove()
    rows = [torch.autograd.grad(y, kept[0], retain_graph=True)[0][real] for y in answer]
    return torch.stack(rows).double()


def test_outputs_are_the_mean_of_the_jacobian_s_squares():
    """Over many draws of the mixture: here one batch given often."""
    model, inputs = tiny_bert(), batch(2, 5)
    name = QUERY.replace("self.query", "output.dense")
    found = layer_statistics(model, [inputs] * 400, quiet=True)[name]
    by = jacobian(model, inputs, name)
    want = torch.einsum("ati,atj->ij", by, by) / by.shape[1]
    error = torch.linalg.norm(found.outputs - want) / torch.linalg.norm(want)
    assert error < 0.1
    assert found.outputs.dtype == torch.float64


def test_an_error_of_the_outputs_costs_what_they_say():
    model, inputs = tiny_bert(), batch(2, 5)
    name = QUERY.replace("attention.self.query", "output.dense")
    seen = layer_statistics(model, [inputs] * 400, quiet=True)[name]
    real = inputs["attention_mask"].bool()
    linear = model.get_submodule(name)
    with torch.no_grad():
        want = model(**inputs).last_hidden_state[real]
        costs = []
        for _ in range(200):
            noise = 1e-3 * torch.randn(*real.shape, linear.out_features)
            handle = linear.register_forward_hook(lambda _, __, y, noise=noise: y + noise)
            costs.append(float((model(**inputs).last_hidden_state[real] - want).square().sum()))
            handle.remove()
    tokens = int(real.sum())
    expected = 1e-6 * float(seen.outputs.trace()) * tokens
    assert sum(costs) / len(costs) == pytest.approx(expected, rel=0.15)


def test_padding_has_no_part_in_the_outputs():
    model, short = tiny_bert(), batch(1, 5)
    pad = torch.zeros(1, 3, dtype=torch.long)
    longer = {name: torch.cat([tensor, pad], 1) for name, tensor in short.items()}
    found = [layer_statistics(model, [b] * 300, quiet=True)[QUERY] for b in (short, longer)]
    difference = torch.linalg.norm(found[0].outputs - found[1].outputs)
    assert difference < 0.15 * torch.linalg.norm(found[0].outputs)


def test_the_same_each_time():
    first, second = (layer_statistics(tiny_bert(), BATCHES, quiet=True)[QUERY] for _ in range(2))
    assert torch.equal(first.outputs, second.outputs)


def test_frozen_models_have_outputs_too():
    model = tiny_bert()
    want = layer_statistics(model, BATCHES, quiet=True)[QUERY]
    model.requires_grad_(False)
    with torch.inference_mode():
        got = layer_statistics(model, BATCHES, quiet=True)[QUERY]
    torch.testing.assert_close(got.outputs, want.outputs)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_head_s_logits_are_its_answer():
    model = with_head("bert")
    found = layer_statistics(model, BATCHES, quiet=True)
    assert all(seen.outputs.isfinite().all() for seen in found.values())
    assert any(seen.outputs.any() for seen in found.values())


@pytest.mark.parametrize("scale", [2.0**-70, 2.0**70])
def test_gradients_beyond_the_squares_of_fp32_are_as_exact(scale):
    """Their products would be lost below 1e-45, or be infinite."""

    class Scaled(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.model, self.scale = tiny_bert(), scale

        def forward(self, **inputs):
            return {"y": self.model(**inputs).last_hidden_state * self.scale}

    want = layer_statistics(Scaled(1.0), BATCHES, quiet=True)
    got = layer_statistics(Scaled(scale), BATCHES, quiet=True)
    for name, layer in want.items():
        assert torch.equal(got[name].outputs, layer.outputs * scale**2)
