"""Programmatic dependent launch: a kernel starts while the one before it still runs.

The time to launch it, and to reach its first load, is then hidden by the last programs of its
predecessor. NVIDIA's sm_90 and newer have it; the tuner measures where it pays.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def wait_for_predecessor(PDL: tl.constexpr):
    """Wait, if PDL, for the end of the preceding kernel and its writes; then let the next start.

    To be called once by each program of a kernel, before it touches memory, weights included: the
    preceding kernel may be a cast or a copy of them. Since a kernel waits for its predecessor
    alone, order among three kernels holds only if all programs of the second wait. The next kernel
    starts no earlier, so that it takes no resources from the programs of the preceding one.
    """
    if PDL:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
