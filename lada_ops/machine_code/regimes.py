"""Regimes: launcher calls that tile alike, with limits on the machine code of one kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from .calls import LauncherCall

LOW_RANK, LINEAR = "_low_rank_linear_fwd_kernel", "_linear_fwd_kernel"
SPARSE, BOTH = "_block_sparse_linear_fwd_kernel", "_sparse_low_rank_linear_fwd_kernel"
DX, DFACTORS = "_low_rank_linear_dx_kernel", "_low_rank_linear_dfactors_kernel"
DVALUES = "_block_sparse_linear_dvalues_kernel"
FFN, FFN_SUM = "_low_rank_ffn_fwd_kernel", "_low_rank_ffn_sum_kernel"
ADD_NORM = "_add_norm_kernel"


@dataclass(frozen=True)
class Regime:
    """Calls of one launcher: `weights` times `epilogues` times `tokens`."""

    kernel: str
    """Kernel whose launches the limits apply to."""
    stem: str
    tokens: tuple[int, ...]
    weights: Mapping[str, tuple[int, float]]
    """Weight name -> least occupancy, most `Binary.issue_per_tensor`."""
    epilogues: Mapping[str, float]
    """Epilogue -> most `Binary.instructions_per_element`."""
    variant: str | None = None
    """Name as spelled in files, see `lada_kernels.variants.VariantName`; None for the default."""
    whole_packs: bool = True
    dtype: torch.dtype = torch.bfloat16
    gradient: str | None = None

    def calls(self) -> Iterator[tuple[LauncherCall, int, float, float]]:
        """Calls with their least occupancy, most issue cycles and most instructions."""
        from lada_kernels.variants import Variant

        variant = None if self.variant is None else Variant(self.variant)
        for tokens in self.tokens:
            for weight, (occupancy, issue) in self.weights.items():
                for epilogue, instructions in self.epilogues.items():
                    k = 3072 if epilogue == "norm" and self.stem != "low_rank_ffn" else 768
                    n = 768 if epilogue == "norm" or self.stem == "low_rank_ffn" else 3072
                    call = LauncherCall(
                        *(self.stem, tokens, k, n, weight, epilogue, self.dtype),
                        *(variant, self.whole_packs, self.gradient),
                    )
                    yield call, occupancy, issue, instructions
