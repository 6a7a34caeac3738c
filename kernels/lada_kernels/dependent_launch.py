"""Programmatic dependent launch: a kernel starts while the one before it still runs.

What it takes to launch, and to reach its first load, then hides behind the last programs of the
other. NVIDIA's sm_90 and newer have it; whether it pays is for the tuner to find.
"""

import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def wait_for_predecessor(PDL: tl.constexpr):
    """With PDL, wait for the kernel before to be done and its writes seen; then let the next start.

    To be called by all programs of a kernel, once, before they touch memory. That goes for weights
    too: the kernel before may be what casts or copies them. The next kernel waits for this one
    alone: that all programs of this one wait is what keeps it behind all kernels before. To let it
    start only then leaves no third kernel in the way of the programs of the first.
    """
    if PDL:
        cuda.gdc_wait()
        cuda.gdc_launch_dependents()
