import pytest
import torch

from lada_ops.approximation.svd import damped, rank_gains, truncated_svd
from tests.approximation.weights import SHAPES, inputs_and_gram, norm


def random(shape):
    return torch.randn(shape, dtype=torch.float64)


def tail(matrix, rank):
    """The least error of any matrix of that rank (Eckart-Young)."""
    return norm(torch.linalg.svdvals(matrix)[rank:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_truncated_error_is_the_tail_of_singular_values(shape):
    weight = random(shape)
    for rank in {1, (min(shape) + 1) // 2, min(shape)}:
        got = norm(weight - truncated_svd(weight, rank).to_dense())
        assert got == pytest.approx(tail(weight, rank), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whitened_error_is_the_tail_of_singular_values_of_the_outputs(shape):
    """``||(W - u v) X|| >= tail(W X)``, whatever u and v are."""
    weight = random(shape)
    x, gram = inputs_and_gram(shape[1])
    for rank in {1, (min(shape) + 1) // 2, min(shape)}:
        got = norm((weight - truncated_svd(weight, rank, gram).to_dense()) @ x)
        assert got == pytest.approx(tail(weight @ x, rank), rel=1e-6, abs=1e-5)


def test_whitened_equals_the_projection_on_the_leading_outputs():
    weight = random((24, 40))
    x, gram = inputs_and_gram(40)
    leading = torch.linalg.svd(weight @ x)[0][:, :7]
    got = truncated_svd(weight, 7, gram).to_dense()
    torch.testing.assert_close(got, leading @ leading.T @ weight, rtol=1e-6, atol=1e-6)


def test_whitened_is_better_on_the_inputs_and_worse_on_the_weights():
    weight = random((24, 40))
    x, gram = inputs_and_gram(40)
    plain, whitened = truncated_svd(weight, 7), truncated_svd(weight, 7, gram)
    assert norm((weight - whitened.to_dense()) @ x) < 0.9 * norm((weight - plain.to_dense()) @ x)
    assert norm(weight - whitened.to_dense()) > norm(weight - plain.to_dense())


def test_whitened_by_the_identity_is_truncated():
    weight = random((24, 40))
    got = truncated_svd(weight, 7, torch.eye(40, dtype=torch.float64)).to_dense()
    torch.testing.assert_close(got, truncated_svd(weight, 7).to_dense())


def test_whitened_does_not_depend_on_the_scale_of_the_inputs():
    weight, (_, gram) = random((24, 40)), inputs_and_gram(40)
    got = [truncated_svd(weight, 7, scale * gram).to_dense() for scale in (1e-12, 1.0, 1e12)]
    torch.testing.assert_close(got[0], got[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got[2], got[1], rtol=1e-6, atol=1e-6)


def test_factors_share_the_singular_values_evenly():
    low_rank = truncated_svd(random((24, 40)), 7)
    want = torch.linalg.svdvals(low_rank.to_dense())[:7]
    torch.testing.assert_close(low_rank.u.square().sum(0), want)
    torch.testing.assert_close(low_rank.v.square().sum(1), want)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e15])
def test_relative_error_does_not_depend_on_the_scale(scale):
    weight = random((24, 40))
    got = norm(weight * scale - truncated_svd(weight * scale, 7).to_dense())
    assert got == pytest.approx(scale * tail(weight, 7), rel=1e-9)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)], ids=str)
@pytest.mark.parametrize("rank", [3, 4, 20])
def test_rank_deficient_weight_is_kept_whole(shape, rank):
    weight = random((shape[0], 3)) @ random((3, shape[1]))
    low_rank = truncated_svd(weight, rank)
    assert low_rank.u.isfinite().all()
    assert low_rank.v.isfinite().all()
    torch.testing.assert_close(low_rank.to_dense(), weight)


def test_rank_deficient_weight_is_kept_whole_when_whitened():
    weight, (_, gram) = random((24, 3)) @ random((3, 40)), inputs_and_gram(40)
    got = truncated_svd(weight, 20, gram).to_dense()
    torch.testing.assert_close(got, weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_zero_weight_stays_zero(dtype):
    low_rank = truncated_svd(torch.zeros(24, 40, dtype=dtype), 7)
    assert torch.equal(low_rank.to_dense(), torch.zeros(24, 40, dtype=dtype))


def test_zero_weight_stays_zero_when_whitened():
    got = truncated_svd(torch.zeros(24, 40), 7, inputs_and_gram(40)[1]).to_dense()
    assert torch.equal(got, torch.zeros(24, 40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_factors_keep_the_dtype_and_lose_only_its_rounding(dtype):
    weight = torch.randn(24, 40).to(dtype)
    low_rank = truncated_svd(weight, 7)
    assert (low_rank.u.dtype, low_rank.v.dtype) == (dtype, dtype)
    got = norm(weight.double() - low_rank.u.double() @ low_rank.v.double())
    assert got == pytest.approx(tail(weight.double(), 7), rel=1e-3)


def test_weight_that_records_gradients_gives_factors_that_do_not():
    assert not truncated_svd(torch.randn(24, 40, requires_grad=True), 7).u.requires_grad


@pytest.mark.parametrize("rank", [0, -3, 25])
def test_refuses_a_rank_out_of_range(rank):
    with pytest.raises(ValueError, match=f"truncated_svd: rank {rank} .* expected 1 to 24"):
        truncated_svd(random((24, 40)), rank)


def weighed_error(weight, factors, x, outputs):
    """``tr(E^T outputs E)`` of the errors E of the layer's outputs."""
    rest = (weight - factors.u @ factors.v) @ x
    return float((rest * (outputs @ rest)).sum())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)], ids=str)
@pytest.mark.parametrize("rank", [1, 7, 24])
def test_two_sided_is_the_best_of_its_rank_for_errors_that_are_weighed(shape, rank):
    """The error is the tail of the weighed weight's spectrum, as Eckart and Young have it."""
    weight, (x, gram), (_, outputs) = (
        random(shape),
        inputs_and_gram(shape[1]),
        inputs_and_gram(shape[0]),
    )
    got = truncated_svd(weight, rank, gram, outputs)
    root = torch.linalg.cholesky(outputs).T
    want = tail(root @ weight @ x, rank) ** 2
    assert weighed_error(weight, got, x, outputs) == pytest.approx(want, rel=1e-6, abs=1e-6)
    whitened = weighed_error(weight, truncated_svd(weight, rank, gram), x, outputs)
    assert weighed_error(weight, got, x, outputs) <= whitened * (1 + 1e-9) + 1e-6


def test_two_sided_with_outputs_all_alike_is_whitened():
    weight, (_, gram) = random((24, 40)), inputs_and_gram(40)
    got = truncated_svd(weight, 7, gram, 3 * torch.eye(24).double())
    torch.testing.assert_close(got.to_dense(), truncated_svd(weight, 7, gram).to_dense())


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)], ids=str)
@pytest.mark.parametrize("multiple", [1, 5, 8])
def test_gains_are_what_each_step_of_rank_adds(shape, multiple):
    weight = random(shape)
    x, gram = inputs_and_gram(shape[1])
    _, outputs = inputs_and_gram(shape[0])
    root = torch.linalg.cholesky(outputs).T
    errors = [tail(root @ weight @ x, rank) ** 2 for rank in range(0, 25, multiple)]
    want = [before - after for before, after in zip(errors, errors[1:], strict=False)]
    assert rank_gains(weight, gram, outputs, multiple) == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_gains_of_zeros_are_zero():
    grams = torch.eye(40).double(), torch.eye(24).double()
    assert rank_gains(torch.zeros(24, 40), *grams, 8) == [0, 0, 0]


def test_damped_adds_to_the_diagonal_alone():
    gram = torch.tensor([[3.0, 1], [1, 5]], dtype=torch.float64)
    want = torch.tensor([[3.04, 1], [1, 5.04]], dtype=torch.float64)
    torch.testing.assert_close(damped(gram, 0.01), want)


def test_damped_makes_few_tokens_positive_definite():
    x = random((40, 3))
    assert torch.linalg.eigvalsh(damped(x @ x.T)).min() > 0


def test_damped_zeros_are_the_identity():
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.equal(damped(torch.zeros(4, 4, dtype=torch.float64)), eye)
