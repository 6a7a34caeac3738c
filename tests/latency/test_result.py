import json

import numpy as np
import pytest
import torch

from lada_ops.latency import Quartiles, collect, compare
from tests.latency.fakes import candidate


def test_a_comparison_is_plain_json_with_units_in_its_keys():
    found = compare([candidate()], baseline="a", rounds=3, warmup=1, label="8x128", quiet=True)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (content["label"], content["baseline"]) == ("8x128", "a")
    assert content["settings"].keys() == {
        "rounds",
        "warmup",
        "threads",
        "order",
        "seed",
        "clock",
        "min_sample_seconds",
    }
    assert content["environment"]["torch"] == torch.__version__
    timing = content["timings"][0]
    assert {"q25_seconds", "median_seconds", "q75_seconds", "min_seconds"} < timing.keys()
    assert timing["speedup_median"] == 1.0


def test_a_comparison_prints_as_a_table():
    found = compare([candidate("one"), candidate("two")], baseline="one", rounds=1, quiet=True)
    header, first, second = str(found).splitlines()
    assert "ms" in header
    assert first.split()[0] == "one"
    assert second.split()[0] == "two"


def test_quartiles_are_numpys():
    samples = [4.0, 1.0, 7.0, 2.0]
    assert Quartiles.of(samples) == tuple(np.quantile(samples, (0.25, 0.5, 0.75)))


def test_collect_tells_the_environment_once():
    found = [compare([candidate()], baseline="a", rounds=1, label=x, quiet=True) for x in "xy"]
    content = collect(found)
    assert content["environment"] == found[0].environment
    assert [c["label"] for c in content["comparisons"]] == ["x", "y"]
    assert all("environment" not in c for c in content["comparisons"])


def test_collect_refuses_nothing_and_mixed_environments():
    found = [
        compare([candidate()], baseline="a", rounds=1, threads=threads, quiet=True)
        for threads in (1, 2)
    ]
    for comparisons in ([], found):
        with pytest.raises(ValueError, match="single environment"):
            collect(comparisons)


def test_an_unknown_timing_names_the_known_ones():
    found = compare([candidate()], baseline="a", rounds=1, quiet=True)
    with pytest.raises(KeyError, match=r"'b'; expected one of \['a'\]"):
        found["b"]
