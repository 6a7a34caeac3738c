"""Layer after layer: each linear is fitted to what the compressed ones before it give it."""

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
class Drift:
    """What a linear gets in the dense model, x, and in the compressed one, x', over tokens.

    cross: the mean of ``x x'^T`` (in, in), and inputs: of ``x' x'^T``; where the linear has a bias,
    which makes up for means, both `centred`. mean, mean_now (in,): those of x and of x'. energy:
    the mean of ``||W x||^2``. All in fp64.
    """

    cross: Tensor
    inputs: Tensor
    mean: Tensor
    mean_now: Tensor
    energy: Tensor

    @classmethod
    def none(cls, linear: nn.Linear, seen: LayerStatistics) -> Drift:
        """That of a linear which still gets what it got."""
        inputs, weight = seen.unexplained(linear).inputs, linear.weight.double()
        energy = (weight @ seen.inputs * weight).sum()
        return cls(inputs, inputs, seen.mean, seen.mean, energy)

    def target(self, weight: Tensor) -> Tensor:
        """The T (out, in) for which ``T x'`` is nearest to ``W x``, for ``weight`` W, in fp64.

        ``T = W cross inputs^-1``, both damped, which draws T to W. Whatever takes W's place errs by
        its distance from T, in the norm of `inputs`, and by what no weight can help.
        """
        matrix = damped(self.inputs)
        cross = self.cross + matrix - self.inputs
        return torch.linalg.solve(matrix, cross.T @ weight.double().T).T

    def shifted(self, bias: Tensor, weight: Tensor, compressed: Tensor) -> Tensor:
        """The bias (out,) in fp64 that makes the outputs of `compressed` right in the mean."""
        return bias.double() + weight.double() @ self.mean - compressed @ self.mean_now

    def error(self, linear: nn.Linear, compressed: Tensor) -> float:
        """``||Y - Y'||_F / ||W X||_F`` of a weight (out, in) fp64 whose bias is `shifted`."""
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
    fit: Callable[[str, Drift], nn.Module],
) -> None:
    """Call ``fit(name, drift)`` for the named linears in the order in which the model runs them.

    The module it returns takes the linear's place for those after it, in copies of the model's
    layers: the model itself stays as it is. Linears that share one input count as one step (as
    SparseGPT goes through a model, Frantar and Alistarh, ICML 2023, but with the outputs of the
    dense model for a target).
    Only those within layers that run each once, one after another, are fitted; in ALBERT none is.
    The hidden states of all batches are kept, dense and compressed.
    """
    blocks = _blocks(model, names)
    with eval_mode(model):
        order, runs = _record(model, list(blocks), batches)
        for index, block in enumerate(order):
            dense = model.get_submodule(block)
            now = copy.deepcopy(dense)
            for step in _steps(dense, blocks[block], runs[0], index):
                for name, drift in _drifts(dense, now, step, runs, index).items():
                    now.set_submodule(name, fit(f"{block}.{name}", drift))
            for run in runs:
                run.dense = _first(run.call(dense, run.dense, index))
                run.now = _first(run.call(now, run.now, index))


@dataclass(eq=False)
class _Run:
    """A batch on its way through the layers, in the dense model and in the compressed one.

    dense, now: the hidden states (batch, length, hidden); rest: what each layer gets besides.
    """

    mask: Tensor | None
    dense: Tensor
    now: Tensor
    rest: list[tuple[tuple[Any, ...], Mapping[str, Any]]]

    def call(self, layer: nn.Module, hidden: Tensor, index: int) -> Any:
        args, kwargs = self.rest[index]
        return layer(hidden, *args, **kwargs)


def _blocks(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """The layers, members of a ModuleList, that hold the linears, each with the names in it."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        found = re.match(r"((?:.*?\.)?\d+)\.(.+)", name)
        if found and isinstance(model.get_submodule(found[1].rpartition(".")[0]), nn.ModuleList):
            blocks.setdefault(found[1], []).append(found[2])
    return blocks


def _record(model: nn.Module, blocks: list[str], batches: Batches) -> tuple[list[str], list[_Run]]:
    """The layers in the order in which they run, and each batch before the first of them.

    Nothing where they do not run once each, one on what the one before it answered.
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
    """Ends a layer's forward where nothing more of it is wanted."""


def _inputs(
    layer: nn.Module, names: Iterable[str], calls: int, run: _Run, hidden: Tensor, index: int
) -> list[tuple[str, Tensor]]:
    """What the named linears of a layer get, in order, up to so many calls."""
    found: list[tuple[str, Tensor]] = []

    def keep(name: str, _linear: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append((name, args[0]))
        if len(found) == calls:
            raise _EnoughError

    with ExitStack() as stack:
        for name in names:
            handle = layer.get_submodule(name).register_forward_pre_hook(partial(keep, name))
            stack.callback(handle.remove)
        stack.enter_context(suppress(_EnoughError))
        run.call(layer, hidden, index)
    return found


def _steps(layer: nn.Module, names: list[str], run: _Run, index: int) -> list[dict[str, int]]:
    """The linears that share an input, in the order in which they run, and how often each does."""
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


def _drifts(
    dense: nn.Module, now: nn.Module, step: Mapping[str, int], runs: list[_Run], index: int
) -> dict[str, Drift]:
    linears: dict[str, Any] = {name: dense.get_submodule(name) for name in step}
    sums: dict[str, list[Tensor]] = {}
    calls = sum(step.values())
    for run in runs:
        before = _inputs(dense, step, calls, run, run.dense, index)
        after = _inputs(now, step, calls, run, run.now, index)
        last: tuple[Any, Any, Any] = (None, None, None)
        for (name, x), (_, y) in zip(before, after, strict=True):
            if x is not last[0] or y is not last[1]:
                last = x, y, _products(_wide(x, run.mask), _wide(y, run.mask))
            weight = linears[name].weight.T
            outputs = _wide(x, run.mask) @ weight.to(torch.promote_types(x.dtype, torch.float32))
            terms = [outputs.double().square().sum(), *last[2]]
            known = sums.get(name, [torch.zeros_like(term) for term in terms])
            sums[name] = [total + term for total, term in zip(known, terms, strict=True)]
    return {name: _drift(linears[name], *sums[name]) for name in step}


def _wide(x: Tensor, mask: Tensor | None) -> Tensor:
    """The tokens that count, in fp32 at least."""
    return real_tokens(x, mask).to(torch.promote_types(x.dtype, torch.float32))


def _products(x: Tensor, y: Tensor) -> list[Tensor]:
    """The sums of ``x y^T``, ``y y^T``, x, y and 1 over tokens, in fp64.

    Multiplied in the dtype of x, less the means: of large means nothing is left for rounding.
    """
    tokens = torch.tensor(len(x), dtype=torch.float64, device=x.device)
    sums = [x.sum(0, dtype=torch.float64), y.sum(0, dtype=torch.float64)]
    means = [total / tokens.clamp(min=1) for total in sums]
    x, y = ((z - mean.to(z.dtype)) for z, mean in zip((x, y), means, strict=True))
    cross = (x.T @ y).double() + tokens * torch.outer(*means)
    inputs = (y.T @ y).double() + tokens * torch.outer(means[1], means[1])
    return [cross, inputs, *sums, tokens]


def _drift(linear: nn.Module, energy: Tensor, *sums: Tensor) -> Drift:
    tokens = sums[-1]
    cross, inputs, mean, mean_now = (total / tokens for total in sums[:-1])
    if linear.bias is not None:
        cross, inputs = centred(cross, mean, mean_now), centred(inputs, mean_now, mean_now)
    return Drift(cross, inputs, mean, mean_now, energy / tokens)
