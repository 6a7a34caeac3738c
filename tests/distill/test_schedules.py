import pytest

from lada_ops.distill.schedules import Span, cubic, geometric


@pytest.mark.parametrize(
    ("progress", "value"), [(0, 10.0), (0.5, 2 + 8 / 8), (0.75, 2 + 8 / 64), (1, 2.0)]
)
def test_cubic(progress, value):
    assert cubic(10, 2, progress) == pytest.approx(value)


@pytest.mark.parametrize(("increment", "value"), [(0, 1.0), (1, 0.25**0.25), (2, 0.5), (4, 0.25)])
def test_geometric(increment, value):
    assert geometric(0.25, increment, 4) == pytest.approx(value)


@pytest.mark.parametrize(
    ("step", "progress"), [(1, 0.0), (10, 0.0), (20, 0.25), (30, 0.5), (50, 1.0), (100, 1.0)]
)
def test_span(step, progress):
    assert Span(0.1, 0.5).progress(step, 100) == pytest.approx(progress)


@pytest.mark.parametrize("limits", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0, 1.1)])
def test_a_span_is_a_part_of_the_run(limits):
    with pytest.raises(ValueError, match="expected 0 <= begin < end <= 1"):
        Span(*limits)
