"""Sequential calibration: each linear is fitted on the activations of the compressed layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..approximation.svd import damped
from .batches import Batches, call_model, eval_mode, model_inputs, real_tokens, token_mask
from .calibration import MEAN_SHARE, LayerStatistics, centred


@dataclass(frozen=True, eq=False)
class InputShift:
    """Shift of a linear's inputs: x in the dense model, x' in the compressed one, same tokens.

    cross: ``E[x x'^T]`` (in, in); inputs: ``E[x' x'^T]`` (in, in); both `centred` where the linear
    has a bias, which corrects means. mean: ``E[x]`` (in,); shifted_mean: ``E[x']`` (in,); energy:
    ``E[||W x||^2]``. Means over tokens, in fp64.
    """

    cross: Tensor
    inputs: Tensor
    mean: Tensor
    shifted_mean: Tensor
    energy: Tensor

    @classmethod
    def none(cls, linear: nn.Linear, statistics: LayerStatistics) -> InputShift:
        """No shift: the linear's inputs are unchanged."""
        inputs, weight = statistics.centred_for(linear).inputs, linear.weight.double()
        energy = (weight @ statistics.inputs * weight).sum()
        return cls(inputs, inputs, statistics.mean, statistics.mean, energy)

    def target(self, weight: Tensor) -> Tensor:
        """Weight T (out, in) fp64 that minimises ``E[||W x - T x'||^2]``, for ``weight`` W.

        ``T = W cross inputs^-1``, both damped, which draws T to W. The error of any other weight is
        its distance from T in the norm of `inputs`, plus a rest that no weight reduces.
        """
        matrix = damped(self.inputs)
        cross = self.cross + matrix - self.inputs
        return torch.linalg.solve(matrix, cross.T @ weight.double().T).T

    def corrected_bias(self, bias: Tensor, weight: Tensor, compressed: Tensor) -> Tensor:
        """Bias (out,) fp64 with which the weight `compressed` has the dense outputs in the mean."""
        return bias.double() + weight.double() @ self.mean - compressed @ self.shifted_mean

    def error(self, linear: nn.Linear, compressed: Tensor) -> float:
        """``||Y - Y'||_F / ||W X||_F`` of a weight (out, in) fp64 with its `corrected_bias`."""
        weight, size = linear.weight.double(), self.energy
        if linear.bias is not None:
            size = size - MEAN_SHARE * (weight @ self.mean).square().sum()
        both = (weight @ self.cross * compressed).sum()
        left = size - 2 * both + (compressed @ self.inputs * compressed).sum()
        return float((left.clamp(min=0) / self.energy.clamp(min=1e-300)).sqrt())


@torch.no_grad()
def fit_in_sequence(
    model: nn.Module,
    names: Iterable[str],
    batches: Batches,
    fit: Callable[[str, InputShift], nn.Module],
) -> None:
    """Call ``fit(name, shift)`` for the named linears in the order in which the model runs them.

    The returned module replaces the linear for all later ones, in copies of the model's layers: the
    model itself stays unchanged. Linears that share one input form one step (as SparseGPT goes
    through a model, Frantar and Alistarh, ICML 2023, but with the dense model's outputs as target).
    Linears outside of a stack of layers are left out, and so are all linears of a model whose
    layers do not run once each, one after another (ALBERT). The hidden states of all batches are
    kept in memory, dense and compressed.
    """
    blocks = _blocks(model, names)
    with eval_mode(model):
        order, runs = _record(model, list(blocks), batches)
        for index, block in enumerate(order):
            dense = model.get_submodule(block)
            compressed = copy.deepcopy(dense)
            for step in _steps(dense, blocks[block], runs[0], index):
                for name, shift in _input_shifts(dense, compressed, step, runs, index).items():
                    compressed.set_submodule(name, fit(f"{block}.{name}", shift))
            for run in runs:
                run.dense = _first(run.call(dense, run.dense, index))
                run.compressed = _first(run.call(compressed, run.compressed, index))


@dataclass(eq=False)
class _Run:
    """Hidden states of a batch between two layers, in the dense and in the compressed model.

    mask (batch, length): of real tokens. dense, compressed: (batch, length, hidden). rest: the
    other arguments of each layer, positional and by keyword.
    """

    mask: Tensor | None
    dense: Tensor
    compressed: Tensor
    rest: list[tuple[tuple[Any, ...], Mapping[str, Any]]]

    def call(self, layer: nn.Module, hidden: Tensor, index: int) -> Any:
        args, kwargs = self.rest[index]
        return layer(hidden, *args, **kwargs)


def _blocks(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """Layers (members of a ModuleList) that hold the linears, each with their names in it."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        match = re.match(r"((?:.*?\.)?\d+)\.(.+)", name)
        if match and isinstance(model.get_submodule(match[1].rpartition(".")[0]), nn.ModuleList):
            blocks.setdefault(match[1], []).append(match[2])
    return blocks


def _record(model: nn.Module, blocks: list[str], batches: Batches) -> tuple[list[str], list[_Run]]:
    """Layers in the order in which they run, and the batches as they enter the first one.

    Both empty unless each layer runs once, on the output of the layer before it.
    """
    device, runs, order = next(model.parameters()).device, [], []
    calls: list[tuple[str, tuple[Any, ...], Mapping[str, Any], Any]] = []
    with ExitStack() as stack:
        for block in blocks:
            hook = partial(_keep_call, calls, block)
            handle = model.get_submodule(block).register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        for index, batch in enumerate(batches):
            inputs = model_inputs(batch, index, device)
            calls.clear()
            call_model(model, inputs)
            order = [block for block, *_ in calls]
            if sorted(order) != sorted(blocks) or not all(
                args and args[0] is _first(answer)
                for (*_, answer), (_, args, *_) in zip(calls, calls[1:], strict=False)
            ):
                return [], []
            first = calls[0][1][0]
            rest = [(args[1:], kwargs) for _, args, kwargs, _ in calls]
            runs.append(_Run(token_mask(inputs, device), first, first, rest))
    return order, runs


def _keep_call(
    calls: list[Any], block: str, _module: nn.Module, args: Any, kwargs: Any, answer: Any
) -> None:
    calls.append((block, args, kwargs, answer))


def _first(answer: Any) -> Tensor:
    return answer if isinstance(answer, Tensor) else answer[0]


class _EnoughError(Exception):
    """Stop of a layer's forward, raised once the wanted inputs are recorded."""


def _inputs(
    layer: nn.Module, names: Iterable[str], calls: int, run: _Run, hidden: Tensor, index: int
) -> list[tuple[str, Tensor]]:
    """Inputs of the named linears of a layer, in order, of the first `calls` calls; -1 is all."""
    inputs: list[tuple[str, Tensor]] = []

    def keep(name: str, _linear: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs.append((name, args[0]))
        if len(inputs) == calls:
            raise _EnoughError

    with ExitStack() as stack:
        for name in names:
            handle = layer.get_submodule(name).register_forward_pre_hook(partial(keep, name))
            stack.callback(handle.remove)
        stack.enter_context(suppress(_EnoughError))
        run.call(layer, hidden, index)
    return inputs


def _steps(layer: nn.Module, names: list[str], run: _Run, index: int) -> list[dict[str, int]]:
    """Groups of linears that share an input, in the order of their runs: name -> calls."""
    steps: list[dict[str, int]] = []
    last = None
    for name, x in _inputs(layer, names, -1, run, run.dense, index):
        known = next((step for step in steps if name in step), None)
        if known is not None:
            known[name] += 1
        elif x is last:
            steps[-1][name] = 1
        else:
            steps.append({name: 1})
        last = x
    return steps


def _input_shifts(
    dense: nn.Module, compressed: nn.Module, step: Mapping[str, int], runs: list[_Run], index: int
) -> dict[str, InputShift]:
    linears: dict[str, Any] = {name: dense.get_submodule(name) for name in step}
    sums: dict[str, list[Tensor]] = {}
    calls = sum(step.values())
    for run in runs:
        before = _inputs(dense, step, calls, run, run.dense, index)
        after = _inputs(compressed, step, calls, run, run.compressed, index)
        last: tuple[Any, Any, Any] = (None, None, None)
        for (name, x), (_, y) in zip(before, after, strict=True):
            if x is not last[0] or y is not last[1]:
                last = x, y, _products(_wide(x, run.mask), _wide(y, run.mask))
            weight = linears[name].weight.T
            outputs = _wide(x, run.mask) @ weight.to(torch.promote_types(x.dtype, torch.float32))
            terms = [outputs.double().square().sum(), *last[2]]
            known = sums.get(name, [torch.zeros_like(term) for term in terms])
            sums[name] = [total + term for total, term in zip(known, terms, strict=True)]
    return {name: _input_shift(linears[name], *sums[name]) for name in step}


def _wide(x: Tensor, mask: Tensor | None) -> Tensor:
    """Real tokens (tokens, features), in fp32 at least."""
    return real_tokens(x, mask).to(torch.promote_types(x.dtype, torch.float32))


def _products(x: Tensor, y: Tensor) -> list[Tensor]:
    """Sums of ``x y^T``, ``y y^T``, x, y and 1 over tokens, in fp64.

    Products are taken in the dtype of x after the means are subtracted, since large means would
    leave their differences to rounding.
    """
    tokens = torch.tensor(len(x), dtype=torch.float64, device=x.device)
    sums = [x.sum(0, dtype=torch.float64), y.sum(0, dtype=torch.float64)]
    means = [total / tokens.clamp(min=1) for total in sums]
    x, y = ((z - mean.to(z.dtype)) for z, mean in zip((x, y), means, strict=True))
    cross = (x.T @ y).double() + tokens * torch.outer(*means)
    inputs = (y.T @ y).double() + tokens * torch.outer(means[1], means[1])
    return [cross, inputs, *sums, tokens]


def _input_shift(linear: nn.Module, energy: Tensor, *sums: Tensor) -> InputShift:
    tokens = sums[-1]
    cross, inputs, mean, shifted = (total / tokens for total in sums[:-1])
    if linear.bias is not None:
        cross, inputs = centred(cross, mean, shifted), centred(inputs, shifted, shifted)
    return InputShift(cross, inputs, mean, shifted, energy / tokens)
