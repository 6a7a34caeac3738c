"""Options, cases and result files of the benchmarks.

``pytest benchmarks/ --benchmark-only`` runs all; ``--results DIR`` also writes
``DIR/<device>/<stem>.json``; ``--quick`` runs tiny shapes as a smoke test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import shapes
from benchmarks.suite.ceilings import measure_ceilings
from lada_ops.host.environment import device_slug
from lada_ops.host.files import write_json
from lada_ops.latency import Candidate, Comparison, collect, compare
from lada_ops.latency.clock import clock_for

RESULTS = pytest.StashKey[dict[str, list[Comparison]]]()
Report = Callable[[Comparison, str, Sequence[Callable[[], Any]]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lada")
    group.addoption("--quick", action="store_true", help="tiny shapes, as a smoke test")
    group.addoption("--results", metavar="DIR", help="write DIR/<device>/<stem>.json")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = {}
    config.addinivalue_line("filterwarnings", "ignore:Sparse BSR tensor support is in beta")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("--quick", default=False)
    for argument, cases in (
        ("linear_case", shapes.QUICK_LINEARS if quick else shapes.LINEARS),
        ("ffn_case", shapes.QUICK_FFNS if quick else shapes.FFNS),
        ("model_case", shapes.QUICK_MODELS if quick else shapes.MODELS),
    ):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, cases, ids=str, scope="session")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def report(benchmark: Any, request: pytest.FixtureRequest) -> Report:
    """Function that keeps a comparison for the result file, and times one candidate by
    pytest-benchmark too."""

    def report(comparison: Comparison, name: str, calls: Sequence[Callable[[], Any]]) -> None:
        timing, rotation = comparison[name], itertools.cycle(calls)

        def call() -> None:
            next(rotation)()
            if shapes.DEVICE.type == "cuda":
                torch.cuda.synchronize()

        with torch.no_grad():
            benchmark.pedantic(
                call,
                rounds=timing.samples,
                iterations=timing.calls_per_sample,
                warmup_rounds=1,
            )
        benchmark.extra_info["comparison"] = comparison.to_dict()
        stem = Path(request.path).stem.removeprefix("bench_")
        request.config.stash[RESULTS].setdefault(stem, []).append(comparison)

    return report


@pytest.fixture
def report_linear(report: Report) -> Callable[[str, Sequence[Candidate], str], None]:
    """Function that compares candidates with "dense", and reports the one named `name`."""

    def report_linear(label: str, candidates: Sequence[Candidate], name: str) -> None:
        comparison = compare(candidates, baseline="dense", rounds=9, label=label)
        own = next(candidate for candidate in candidates if candidate.name == name)
        report(comparison, name, own.calls)

    return report_linear


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    folder = session.config.getoption("--results", default=None)
    # a failed run would overwrite a complete result file with an incomplete one
    if folder is None or exitstatus != pytest.ExitCode.OK:
        return
    quick = bool(session.config.getoption("--quick"))
    with torch.no_grad():
        top = measure_ceilings(shapes.DEVICE, shapes.DTYPE, clock_for(shapes.DEVICE), quick)
    for stem, comparisons in session.config.stash[RESULTS].items():
        content = collect(comparisons) | {"ceilings": top}
        write_json(Path(folder) / device_slug() / f"{stem}.json", content)
