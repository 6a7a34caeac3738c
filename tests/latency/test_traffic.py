import pytest
import torch

from lada_ops.latency import Comparison, Quartiles, Timing
from lada_ops.latency.traffic import throughput


def timing(name, seconds, base):
    quartiles = Quartiles(seconds, seconds, seconds)
    speedup = Quartiles(*[base / seconds] * 3)
    return Timing(name, quartiles, seconds, speedup, 1, 1, 1, "float32", 0.0, 1e-4)


def comparison(dense, ours):
    return Comparison(
        "", "dense", (timing("dense", dense, dense), timing("ours", ours, dense)), {}, {}
    )


MASKS = [torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 0]])]


def test_what_requests_say_together():
    dense, ours = throughput([comparison(4.0, 1.0), comparison(2.0, 1.0)], MASKS)
    assert (dense.name, dense.speedup, dense.percentiles[50]) == ("dense", 1.0, 3.0)
    assert (ours.name, ours.speedup, ours.percentiles[50]) == ("ours", 3.0, 1.0)
    assert (dense.sentences, dense.tokens) == (3 / 6, 6 / 6)  # padding does not count
    assert (ours.sentences, ours.tokens) == (3 / 2, 6 / 2)


def test_percentiles_are_over_the_requests():
    comparisons = [comparison(float(i), 1.0) for i in range(1, 102)]
    dense, _ = throughput(comparisons, MASKS[:1] * 101)
    assert dense.percentiles == {50: 51.0, 95: 96.0, 99: 100.0}


def test_as_a_dict_units_are_in_the_names():
    (_, ours) = throughput([comparison(4.0, 1.0)], MASKS[:1])
    assert ours.to_dict() == {
        "name": "ours",
        "p50_seconds": 1.0,
        "p95_seconds": 1.0,
        "p99_seconds": 1.0,
        "sentences_per_second": 2.0,
        "tokens_per_second": 5.0,
        "speedup": 4.0,
    }


@pytest.mark.parametrize("count", [0, 1])
def test_as_many_masks_as_comparisons(count):
    with pytest.raises(ValueError, match=f"{count} comparisons, 2 masks; expected"):
        throughput([comparison(4.0, 1.0)] * count, MASKS)
