"""The block-sparse format; the others are in test_formats.py."""

import itertools
import warnings

import pytest
import torch

from lada_ops import Bsr, Counts
from lada_ops.formats.bsr import panel_major

pytestmark = pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")


def bsr(**changes):
    """6 x 12 of 2 x 3 blocks: rows of 2, 0 and 1 blocks. Element (i, j) is 100 i + j + 1."""
    tensors = {
        "crow_indices": torch.tensor([0, 2, 2, 3]),
        "col_indices": torch.tensor([1, 3, 0]),
        "values": torch.tensor(
            [
                [[4.0, 5, 6], [104, 105, 106]],
                [[10, 11, 12], [110, 111, 112]],
                [[401, 402, 403], [501, 502, 503]],
            ]
        ),
        "shape": (6, 12),
    }
    return Bsr(**(tensors | changes))


def dense():
    """Dense weight of `bsr`, by hand: each element tells its own place."""
    places = 100.0 * torch.arange(6)[:, None] + torch.arange(12) + 1
    kept = torch.zeros(6, 12)
    kept[0:2, 3:6] = 1
    kept[0:2, 9:12] = 1
    kept[4:6, 0:3] = 1
    return places * kept


def packed(rows, width=16, cols=8):
    """Blocks 2 x `width` of random values in the given columns of each block row."""
    crow_indices = torch.tensor([0, *itertools.accumulate(map(len, rows))])
    col_indices = torch.tensor([col for row in rows for col in row], dtype=torch.int32)
    values = torch.randn(len(col_indices), 2, width)
    return Bsr(crow_indices, col_indices, values, (2 * len(rows), cols * width))


def on_meta(made):
    return Bsr(
        made.crow_indices.to("meta"),
        made.col_indices.to("meta"),
        made.values.to("meta"),
        made.shape,
    )


class TestBsr:
    def test_to_dense(self):
        assert torch.equal(bsr().to_dense(), dense())

    @pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
    def test_indices_are_kept_as_int32(self, index):
        made = bsr(
            crow_indices=torch.tensor([0, 2, 2, 3], dtype=index),
            col_indices=torch.tensor([1, 3, 0], dtype=index),
        )
        assert (made.crow_indices.dtype, made.col_indices.dtype) == (torch.int32, torch.int32)

    def test_properties(self):
        made = bsr()
        assert (made.block, made.grid, made.nnz, made.density) == ((2, 3), (3, 4), 3, 3 / 12)

    def test_shape_is_a_plain_tuple(self):
        assert type(bsr(shape=torch.Size((6, 12))).shape) is tuple

    def test_to_dense_of_panel_major_values(self):
        assert torch.equal(bsr(values=panel_major(bsr().values)).to_dense(), dense())

    def test_to_dense_is_differentiable_in_the_values(self):
        values = bsr().values.clone().requires_grad_()
        weigh = torch.randn(6, 12)
        (bsr(values=values).to_dense() * weigh).sum().backward()
        want = Bsr.from_dense(weigh, (2, 3), dense()[::2, ::3] != 0).values
        assert values.grad is not None
        assert torch.equal(values.grad, want)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
    def test_dtype_is_kept(self, dtype):
        assert bsr(values=bsr().values.to(dtype)).to_dense().dtype == dtype

    def test_no_blocks(self):
        empty = bsr(
            crow_indices=torch.zeros(4, dtype=torch.int32),
            col_indices=torch.zeros(0, dtype=torch.int32),
            values=torch.zeros(0, 2, 3),
        )
        assert torch.equal(empty.to_dense(), torch.zeros(6, 12))
        assert empty.density == 0

    def test_meta_tensors_are_taken_unread(self):
        assert on_meta(bsr()).block == (2, 3)

    # packs

    def test_order_is_by_descending_count(self):
        made = packed([[0], [1, 2, 4], [], [0, 1, 2, 3]])
        assert (made.order.tolist(), made.order.dtype) == ([3, 1, 0, 2], torch.int32)

    def test_order_of_equal_counts_is_that_of_the_rows(self):
        assert packed([[1], [0, 1], [2], [4, 5], [3]]).order.tolist() == [1, 3, 0, 2, 4]

    @pytest.mark.parametrize(
        ("width", "rows", "whole"),
        [
            (16, [[0, 1, 4, 7], [], list(range(8))], True),
            (16, [[0, 1, 4, 7], [0], list(range(8))], False),
            (16, [[0, 1], [0, 1]], False),
            (32, [[1, 2], [], [0, 3]], True),
            (32, [[1, 2], [0, 1, 3]], False),
            (64, [[0], [0, 1], []], True),
            (4, [[0], [0, 1, 2], []], True),
        ],
    )
    def test_whole_packs(self, width, rows, whole):
        assert packed(rows, width).whole_packs is whole

    @pytest.mark.parametrize("cols", [6, 3])
    def test_full_rows_of_no_whole_packs_are_not_whole(self, cols):
        assert not packed([list(range(cols))], cols=cols).whole_packs

    def test_whole_packs_of_meta_are_unknown(self):
        made = packed([[0, 1, 2, 3]])
        assert not on_meta(made).whole_packs
        assert on_meta(made).padded().nnz == 4

    def test_padded_fills_the_first_free_columns_with_zeros(self):
        made = packed([[0, 2, 5, 6, 7], [], [1], [0, 1, 2, 3]])
        got = made.padded()
        rows = [[0, 1, 2, 3, 4, 5, 6, 7], [], [0, 1, 2, 3], [0, 1, 2, 3]]
        assert got.crow_indices.tolist() == [0, 8, 8, 12, 16]
        assert got.col_indices.tolist() == [col for row in rows for col in row]
        assert torch.equal(got.to_dense(), made.to_dense())

    def test_padded_is_whole_and_panel_major(self):
        got = packed([[3], [1, 2, 4, 6, 7]]).padded()
        assert got.whole_packs
        assert got.values.transpose(1, 2).is_contiguous()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
    def test_padded_keeps_the_dtype(self, dtype):
        made = packed([[3]])
        values = made.values.to(dtype)
        got = Bsr(made.crow_indices, made.col_indices, values, made.shape).padded()
        assert got.values.dtype == dtype

    @pytest.mark.parametrize(
        "made",
        [
            lambda: packed([[0, 2, 5, 6], []]),
            lambda: packed([[0, 1, 2]], width=4),
            lambda: packed([[0, 2, 5]], cols=6),
        ],
        ids=["whole", "no kernel's", "columns no whole packs"],
    )
    def test_padded_is_itself_where_there_is_nothing_to_fill(self, made):
        made = made()
        assert made.padded() is made

    # conversion

    def test_from_dense_keeps_blocks_that_hold_something(self):
        made = Bsr.from_dense(dense(), (2, 3))
        assert made.crow_indices.tolist() == [0, 2, 2, 3]
        assert made.col_indices.tolist() == [1, 3, 0]
        assert torch.equal(made.to_dense(), dense())

    def test_from_dense_keeps_what_it_is_told(self):
        keep = torch.tensor([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
        made = Bsr.from_dense(torch.ones(6, 12), (2, 3), keep)
        want = keep.repeat_interleave(2, 0).repeat_interleave(3, 1).float()
        assert torch.equal(made.to_dense(), want)

    def test_from_dense_stores_zero_blocks_when_told(self):
        assert Bsr.from_dense(torch.zeros(6, 12), (2, 3), torch.ones(3, 4).bool()).nnz == 12

    def test_from_dense_takes_any_strides(self):
        assert torch.equal(Bsr.from_dense(dense().T.contiguous().T, (2, 3)).to_dense(), dense())

    def test_from_dense_values_are_panel_major(self):
        values = Bsr.from_dense(dense(), (2, 3)).values
        assert values.stride() == (6, 1, 2)

    def test_from_dense_does_not_alias_the_weight(self):
        weight = torch.ones(6, 12)
        made = Bsr.from_dense(weight, (6, 1))
        weight.zero_()
        assert made.values.all()

    @pytest.mark.parametrize("block", [(1, 1), (6, 12), (2, 4), (3, 2), (1, 12), (6, 1)], ids=str)
    def test_round_trip_through_dense(self, block):
        weight = torch.randn(6, 12) * (torch.rand(6, 12) < 0.3)
        assert torch.equal(Bsr.from_dense(weight, block).to_dense(), weight)

    @pytest.mark.parametrize("block", [(1, 1), (2, 3), (3, 2), (6, 4), (6, 12)], ids=str)
    def test_from_torch(self, block):
        weight = dense()
        made = Bsr.from_torch(weight.to_sparse_bsr(block))
        assert made.block == block
        assert torch.equal(made.to_dense(), weight)

    @pytest.mark.parametrize("block", [(1, 1), (2, 3), (3, 2), (6, 4), (6, 12)], ids=str)
    def test_to_torch(self, block):
        weight = dense()
        theirs = Bsr.from_dense(weight, block).to_torch()
        assert theirs.layout == torch.sparse_bsr
        assert torch.equal(theirs.to_dense(), weight)

    def test_round_trip_through_torch_without_blocks(self):
        empty = Bsr.from_dense(torch.zeros(6, 12), (2, 3))
        again = Bsr.from_torch(empty.to_torch())
        assert (again.nnz, again.block, again.shape) == (0, (2, 3), (6, 12))

    def test_from_torch_refuses_other_layouts(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            csr = dense().to_sparse_csr()
        with pytest.raises(TypeError, match="layout torch.sparse_csr; expected 2-D"):
            Bsr.from_torch(csr)

    def test_from_torch_refuses_a_batch(self):
        with pytest.raises(TypeError, match="3-D tensor"):
            Bsr.from_torch(torch.ones(2, 6, 12).to_sparse_bsr((2, 3)))

    def test_from_dense_refuses_a_mask_of_another_shape(self):
        with pytest.raises(ValueError, match=r"keep \(4, 3\) torch.bool; expected \(3, 4\)"):
            Bsr.from_dense(dense(), (2, 3), torch.ones(4, 3).bool())

    def test_from_dense_refuses_a_mask_of_numbers(self):
        with pytest.raises(ValueError, match=r"torch.float32; expected \(3, 4\) torch.bool"):
            Bsr.from_dense(dense(), (2, 3), torch.ones(3, 4))

    def test_from_dense_refuses_a_vector(self):
        with pytest.raises(ValueError, match=r"weight \(72,\); expected \(out, in\)"):
            Bsr.from_dense(dense().flatten(), (2, 3))

    # wrong tensors

    @pytest.mark.parametrize(
        ("name", "indices", "message"),
        [
            ("col_indices", [3, 1, 0], r"block row 0 are \[3, 1\]; expected strictly ascending"),
            ("col_indices", [1, 1, 0], r"block row 0 are \[1, 1\]; expected strictly ascending"),
            ("col_indices", [1, 4, 0], "holds 4; expected 0 to 3"),
            ("col_indices", [-1, 3, 0], "holds -1; expected 0 to 3"),
            ("col_indices", [1, 3], r"col_indices \(2,\); expected \(3,\)"),
            ("col_indices", [[1, 3, 0]], r"col_indices \(1, 3\); expected \(3,\)"),
            ("crow_indices", [1, 2, 2, 3], "expected 0 first"),
            ("crow_indices", [0, 2, 2, 4], r"and 3 \(the number of blocks\) last"),
            ("crow_indices", [0, 2, 1, 3], "never descending"),
            ("crow_indices", [0, 4, 2, 3], "never descending"),
            ("crow_indices", [0, 2, 3], r"crow_indices \(3,\); expected \(4,\)"),
            ("crow_indices", [0, 0, 2, 2, 3], r"crow_indices \(5,\); expected \(4,\)"),
        ],
    )
    def test_refuses_wrong_indices(self, name, indices, message):
        with pytest.raises(ValueError, match=f"Bsr: .*{message}"):
            bsr(**{name: torch.tensor(indices)})

    def test_order_counts_within_a_block_row_only(self):
        made = bsr(crow_indices=torch.tensor([0, 1, 2, 3]), col_indices=torch.tensor([3, 3, 0]))
        assert made.nnz == 3

    @pytest.mark.parametrize("name", ["crow_indices", "col_indices"])
    @pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float32], ids=str)
    def test_refuses_indices_of_another_dtype(self, name, dtype):
        with pytest.raises(TypeError, match=f"Bsr: {name} is {dtype}; expected int32 or int64"):
            bsr(**{name: getattr(bsr(), name).to(dtype)})

    @pytest.mark.parametrize("name", ["crow_indices", "col_indices"])
    def test_refuses_indices_on_another_device(self, name):
        with pytest.raises(ValueError, match=f"Bsr: {name} on meta, values on cpu"):
            bsr(**{name: getattr(bsr(), name).to("meta")})

    def test_refuses_values_of_integers(self):
        with pytest.raises(TypeError, match=r"Bsr: values is torch.int64; expected one of"):
            bsr(values=bsr().values.long())

    def test_refuses_values_without_blocks_of_rows(self):
        with pytest.raises(ValueError, match=r"values \(18,\); expected 3 dimensions"):
            bsr(values=torch.ones(18))

    @pytest.mark.parametrize("shape", [(6,), (6, 12, 1), (0, 12), (6, -12)], ids=str)
    def test_refuses_a_shape_that_is_no_pair(self, shape):
        with pytest.raises(
            ValueError, match="Bsr: block .*, shape .*; expected two positive pairs"
        ):
            bsr(shape=shape)

    def test_refuses_a_shape_of_another_grid(self):
        with pytest.raises(ValueError, match="crow_indices"):
            bsr(shape=(8, 12))

    # counts

    def test_counts(self):
        # 18 values of 4 bytes; 4 + 3 indices of 4 bytes; 6 x 12 elements give 9 bytes of mask
        assert bsr().counts() == Counts(18, 18, 18 * 4 + 9, 18 * 4 + 7 * 4, 36)

    def test_counts_tell_explicit_zeros(self):
        values = bsr().values.clone()
        values[0, 0] = 0
        assert bsr(values=values).counts() == Counts(18, 15, 15 * 4 + 9, 18 * 4 + 7 * 4, 36)

    def test_counts_of_half_precision(self):
        counts = bsr(values=bsr().values.half()).counts()
        assert (counts.stored_bytes, counts.masked_bytes) == (18 * 2 + 7 * 4, 18 * 2 + 9)

    def test_mask_counts_bits_up_to_a_whole_byte(self):
        assert Bsr.from_dense(torch.ones(3, 3), (1, 1)).counts().masked_bytes == 9 * 4 + 2

    def test_counts_without_blocks(self):
        assert Bsr.from_dense(torch.zeros(6, 12), (2, 3)).counts() == Counts(0, 0, 9, 4 * 4, 0)
