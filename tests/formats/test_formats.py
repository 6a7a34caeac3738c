import pytest
import torch

from lada_ops import Bsr, Counts, LowRank, SparseLowRank
from lada_ops.formats.bsr import panel_major, split_blocks


def low_rank(out=5, cols=7, rank=3, **kwargs):
    return LowRank(torch.ones(out, rank, **kwargs), torch.ones(rank, cols, **kwargs))


class TestLowRank:
    def test_to_dense(self):
        u, v = torch.tensor([[1.0, 10], [2, 20], [3, 30]]), torch.tensor([[1.0, 2], [5, 7]])
        want = torch.tensor([[51.0, 72], [102, 144], [153, 216]])
        assert torch.equal(LowRank(u, v).to_dense(), want)

    def test_shape_and_rank(self):
        assert (low_rank().shape, low_rank().rank) == ((5, 7), 3)

    @pytest.mark.parametrize("rank", [1, 5])
    def test_takes_ranks_up_to_the_smaller_side(self, rank):
        assert low_rank(rank=rank).rank == rank

    @pytest.mark.parametrize("rank", [0, 6, 7])
    def test_refuses_a_rank_out_of_range(self, rank):
        with pytest.raises(ValueError, match=rf"LowRank: rank {rank} .*\(5, 7\); expected 1 to 5"):
            low_rank(rank=rank)

    @pytest.mark.parametrize(
        ("u", "v"), [((5, 3), (4, 7)), ((5,), (5, 7)), ((2, 5, 3), (3, 7)), ((5, 3), (3, 7, 1))]
    )
    def test_refuses_factors_that_do_not_fit(self, u, v):
        with pytest.raises(ValueError, match="LowRank: u .* and v .*; expected u .out, rank"):
            LowRank(torch.ones(u), torch.ones(v))

    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64], ids=str)
    def test_refuses_what_is_no_float(self, dtype):
        with pytest.raises(TypeError, match=f"LowRank: u is {dtype}; expected one of"):
            low_rank(dtype=dtype)

    def test_refuses_mixed_dtypes(self):
        with pytest.raises(TypeError, match=r"v is torch.float16 .*expected torch.float32"):
            LowRank(torch.ones(5, 3), torch.ones(3, 7).half())

    def test_refuses_mixed_devices(self):
        with pytest.raises(TypeError, match="v is .* on meta; expected .* on cpu, as u"):
            LowRank(torch.ones(5, 3), torch.ones(3, 7, device="meta"))

    def test_counts(self):
        u = torch.tensor([[1.0, 0], [2, 3], [0, 0]])
        counts = LowRank(u, torch.ones(2, 9)).counts()
        # u: 6 values, 3 of them zero, so 1 byte of mask; v: 18 values, no zero, no mask
        assert counts == Counts(6 + 18, 3 + 18, 3 * 4 + 1 + 18 * 4, 24 * 4, 2 * 24)


def bsr():
    weight = torch.zeros(6, 12)
    weight[0:2, 3:6] = torch.arange(6.0).view(2, 3)
    return Bsr.from_dense(weight, (2, 3))


class TestSparseLowRank:
    def test_to_dense_is_the_sum(self):
        weight = SparseLowRank(low_rank(6, 12, 2), bsr())
        assert torch.equal(weight.to_dense(), bsr().to_dense() + 2)

    def test_shape(self):
        assert SparseLowRank(low_rank(6, 12), bsr()).shape == (6, 12)

    def test_counts_are_the_sum(self):
        weight = SparseLowRank(low_rank(6, 12, 2), bsr())
        assert weight.counts() == low_rank(6, 12, 2).counts() + bsr().counts()

    def test_refuses_parts_of_two_shapes(self):
        with pytest.raises(ValueError, match=r"low_rank \(5, 7\), bsr \(6, 12\); expected one"):
            SparseLowRank(low_rank(), bsr())

    def test_refuses_mixed_dtypes(self):
        with pytest.raises(TypeError, match="values is torch.float32 .*expected torch.float16"):
            SparseLowRank(low_rank(6, 12, dtype=torch.float16), bsr())

    def test_refuses_mixed_devices(self):
        with pytest.raises(TypeError, match="expected .* on meta, as u"):
            SparseLowRank(low_rank(6, 12, device="meta"), bsr())


class TestCounts:
    def test_add_up(self):
        assert Counts(1, 2, 3, 4, 5) + Counts(10, 20, 30, 40, 50) == Counts(11, 22, 33, 44, 55)

    def test_of_a_tensor_with_zeros_has_a_mask(self):
        assert Counts.of(torch.tensor([0.0, 1, 2])) == Counts(3, 2, 2 * 4 + 1, 12, 6)

    def test_of_a_tensor_without_zeros_has_none(self):
        assert Counts.of(torch.ones(9).half()) == Counts(9, 9, 18, 18, 18)

    def test_negative_zero_is_zero(self):
        assert Counts.of(torch.tensor([-0.0])).nonzeros == 0

    def test_sum_starts_from_nothing(self):
        assert sum([Counts(1, 1, 1, 1, 1)] * 3, Counts()) == Counts(3, 3, 3, 3, 3)


class TestBlocks:
    def test_split_blocks_places(self):
        places = torch.arange(6)[:, None] * 100 + torch.arange(12)
        blocks = split_blocks(places, (2, 3))
        assert blocks.shape == (3, 4, 2, 3)
        assert blocks[2, 3].tolist() == [[409, 410, 411], [509, 510, 511]]

    def test_panel_major_joins_the_blocks_of_a_row(self):
        values = torch.arange(12.0).view(2, 2, 3)
        laid = panel_major(values)
        assert torch.equal(laid, values)
        panel = laid.transpose(1, 2).reshape(6, 2)
        assert panel.data_ptr() == laid.data_ptr()
        assert torch.equal(panel.T, torch.cat([values[0], values[1]], 1))


class TestScaled:
    """Rows times a factor each, in every format."""

    ROWS = torch.arange(1.0, 9.0)

    @pytest.mark.parametrize("kind", ["low rank", "blocks", "both"])
    def test_rows_are_multiplied(self, kind):
        low_rank = LowRank(torch.randn(8, 2), torch.randn(2, 6))
        bsr = Bsr.from_dense(torch.randn(8, 6), (4, 3), torch.tensor([[1, 0], [1, 1]]).bool())
        formats = {"low rank": low_rank, "blocks": bsr, "both": SparseLowRank(low_rank, bsr)}
        weight = formats[kind]
        want = weight.to_dense() * self.ROWS[:, None]
        torch.testing.assert_close(weight.scaled(self.ROWS).to_dense(), want)
        assert weight.to(torch.float64).to_dense().dtype == torch.float64
        torch.testing.assert_close(weight.to(torch.float64).to_dense().float(), weight.to_dense())
