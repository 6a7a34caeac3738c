import pytest

from lada_ops.machine_code.roofline import Work
from lada_ops.machine_code.targets import TARGETS

H200 = TARGETS["sm_90"]  # 989 TFLOP/s, 4.8 TB/s


@pytest.mark.parametrize(
    ("work", "seconds", "bound"),
    [
        (Work(flops=989 * 10**9, bytes=48 * 10**6), 1e-3, "compute"),
        (Work(flops=989 * 10**6, bytes=48 * 10**8), 1e-3, "memory"),
    ],
)
def test_arithmetic_or_traffic_bounds_the_time(work, seconds, bound):
    assert work.seconds(H200.ceilings) == pytest.approx(seconds)
    assert work.bound(H200.ceilings) == bound
