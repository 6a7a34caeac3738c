"""Programmatic dependent launch: a kernel begins while the one before it on the stream ends.

NVIDIA's GPUs have it from sm_90 on. `TileConfig.overlap` asks for it, where the tuner found that it
pays.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def take_turn(OVERLAP: tl.constexpr):
    """To be called before anything is read or written: what ran before may still do either."""
    if OVERLAP:
        gdc_launch_dependents()  # the next kernel may begin, and waits in its turn
        gdc_wait()
