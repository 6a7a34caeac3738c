"""`BlockSparseLinear`: linear with a block-sparse weight (BSR)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..approximation.blocks import prune_blocks
from ..formats.bsr import INDEX_DTYPE, Bsr, bsr_to_dense, panel_major
from ..formats.grid import block_count, grid_of, group_of
from ..ops.block_sparse_linear import block_sparse_linear
from ..ops.checks import check_x
from .compressed_linear import CompressedLinear


class BsrLinear(CompressedLinear):
    """Base of the linears with a block-sparse part: its tensors, and their check on loading.

    order: (block rows,) int32, block rows by descending load, for the kernels; None unless every
    block row holds whole packs. It is derived from crow_indices, and in no state dict.

    values are column-major within each block (`panel_major`), as the kernels read them. FSDP2
    shards contiguous parameters only: before `fully_shard`, set ``values.data`` to
    ``values.data.contiguous()``. The result is then the same, with a copy at each call.
    """

    crow_indices: Tensor
    col_indices: Tensor
    order: Tensor | None

    def _init_bsr(
        self,
        block: tuple[int, int],
        density: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        shape = self.out_features, self.in_features
        nnz = block_count(type(self).__name__, shape, block, density)
        values = torch.empty(nnz, *block, device=device, dtype=dtype)
        self.values = nn.Parameter(panel_major(values))
        index: dict[str, Any] = {"device": values.device, "dtype": INDEX_DTYPE}
        self.register_buffer("crow_indices", torch.empty(grid_of(shape, block)[0] + 1, **index))
        self.register_buffer("col_indices", torch.empty(nnz, **index))
        self.register_buffer("order", None, persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the bias to 0; spread blocks evenly over the grid, if possible in whole groups."""
        super().reset_parameters()
        nnz, rows = self.col_indices.numel(), self.crow_indices.numel() - 1
        cols = self.in_features // self.block[1]
        group = math.gcd(nnz, group_of((self.out_features, self.in_features), self.block))
        count, device = nnz // group, self.col_indices.device
        firsts = torch.arange(count, device=device) * (rows * cols // group) // max(count, 1)
        cells = (firsts[:, None] * group + torch.arange(group, device=device)).flatten()
        starts = torch.arange(rows + 1, device=device) * cols
        self.crow_indices.copy_(torch.searchsorted(cells, starts))
        self.col_indices.copy_(cells % cols)
        self.update_order()

    def _set_bsr(self, bsr: Bsr) -> None:
        bsr = bsr.padded()
        self.crow_indices = bsr.crow_indices.clone()
        self.col_indices = bsr.col_indices.clone()
        self.values = nn.Parameter(panel_major(bsr.values.detach().clone()))
        self.update_order()

    @property
    def bsr(self) -> Bsr:
        """Block-sparse part, sharing the module's tensors; its indices are checked when read."""
        shape = self.out_features, self.in_features
        return Bsr(self.crow_indices, self.col_indices, self.values.detach(), shape)

    def update_order(self) -> None:
        """Update `order`, after the indices were set by hand.

        Raises ValueError or TypeError as `Bsr`, unless they fit the weight.
        """
        bsr = self.bsr
        self.order = bsr.order if bsr.whole_packs else None

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # an index out of range would read foreign memory on a GPU: refuse it before any change
        own = {n: getattr(self, n) for n in ("crow_indices", "col_indices", "values")}
        given = {n: state_dict[prefix + n] for n in own if prefix + n in state_dict}
        whole = own | given
        bsr = None
        # the base class reports tensors of another shape
        if given and all(whole[n].shape == own[n].shape for n in own):
            if len({t.is_meta for t in whole.values()}) == 1:
                bsr = Bsr(**whole, shape=(self.out_features, self.in_features))
                given = {n: getattr(bsr, n) for n in given}  # its indices are int32
            if "values" in given:
                given["values"] = panel_major(given["values"])
            state_dict.update({prefix + n: t for n, t in given.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
        if bsr is not None:
            self.update_order()

    @property
    def block(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[2]

    @property
    def density(self) -> float:
        return self.values.numel() / (self.out_features * self.in_features)

    def _compute_dense(self) -> Tensor:
        return bsr_to_dense(self.crow_indices, self.col_indices, self.values, self.in_features)

    def _format_repr(self) -> str:
        rows, cols = self.block
        return f", block={rows}x{cols}, density={self.density:.3f}"


class BlockSparseLinear(BsrLinear):
    """``act(x S^T + bias) + residual`` with S stored as crow_indices, col_indices and values.

    values (nnz, block_rows, block_cols) is a parameter; the int32 indices are buffers.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        block: tuple[int, int],
        density: float,
        bias: bool = True,
        activation: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, activation, device, dtype)
        self._init_bsr(block, density, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the values so that the output keeps the scale of the input.

        The bias is 0, and the blocks are spread evenly.
        """
        super().reset_parameters()
        kept = self.values.numel() / self.out_features
        nn.init.normal_(self.values, std=max(kept, 1.0) ** -0.5)

    @classmethod
    def from_format(
        cls, weight: Bsr, bias: Tensor | None = None, activation: str = "none"
    ) -> BlockSparseLinear:
        """Module with copies of the given blocks, `Bsr.padded`, and bias."""
        out_features, in_features = weight.shape
        module = cls(
            in_features,
            out_features,
            weight.block,
            weight.density,
            bias is not None,
            activation,
            device="meta",
        )
        module._set_bsr(weight)
        module._set_bias(bias, weight.values)
        return module

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        block: tuple[int, int],
        density: float,
        activation: str = "none",
    ) -> BlockSparseLinear:
        """Module with the blocks of `linear` of largest Frobenius norm, in its dtype and device."""
        bsr = prune_blocks(linear.weight, block, density)
        return cls.from_format(bsr, linear.bias, activation)

    @property
    def format(self) -> Bsr:
        return self.bsr

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., in), residual (..., out) -> (..., out)."""
        check_x("BlockSparseLinear", x, self.in_features)  # the op takes the width from x
        return block_sparse_linear(
            x,
            self.crow_indices,
            self.col_indices,
            self.values,
            self.bias,
            activation=self.activation,
            residual=residual,
            order=self.order,
            dense=self.dense_for(x),
        )

    def _table_names(self) -> tuple[str, str]:
        from lada_kernels.weight_names import sparse_name

        return "block_sparse_linear", sparse_name(*self.block, self.density)
