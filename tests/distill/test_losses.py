from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lada_ops.distill.losses import EMBEDDINGS, Losses, Outputs, layer_pairs, terms, total

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
ALL = Losses(labels=1, embedding=1, pooled=1)


def outputs(seed: int, layers: int = 2, heads: int = 2, features: int = 4, labels: int = 3):
    torch.manual_seed(seed)
    return Outputs(
        torch.rand(()),
        torch.randn(2, labels),
        [torch.randn(2, 3, features) for _ in range(layers + 1)],
        [torch.randn(2, heads, 3, 3) for _ in range(layers)],
    )


def test_a_student_like_its_teacher_lacks_nothing_but_the_entropy():
    same = outputs(0)
    got = terms(ALL, same, same, MASK)
    assert same.logits is not None
    p = same.logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    torch.testing.assert_close(got["logits"], entropy)
    assert got["labels"] == same.loss
    assert float(got["pooled"]) == pytest.approx(0, abs=1e-6)
    assert {n for n, term in got.items() if term == 0} >= {"attention", "hidden", "embedding"}


def test_terms_are_what_their_formulas_say():
    student, teacher = outputs(1), outputs(2)
    got = terms(Losses(embedding=1, temperature=2), student, teacher, MASK)
    tokens = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]

    def mse(a, b):
        return sum(float((a[i] - b[i]).square().mean()) for i in tokens) / len(tokens)

    pairs = list(zip(student.hidden, teacher.hidden, strict=True))
    assert float(got["embedding"]) == pytest.approx(mse(*pairs[0]), rel=1e-5)
    assert float(got["hidden"]) == pytest.approx(sum(mse(*p) for p in pairs[1:]), rel=1e-5)
    cells = [(0, q, k) for q in range(3) for k in range(3)]
    cells += [(1, q, k) for q in range(2) for k in range(2)]
    scores = 0.0
    for s, t in zip(student.scores, teacher.scores, strict=True):
        scores += sum(float((s[b, :, q, k] - t[b, :, q, k]).square().mean()) for b, q, k in cells)
    assert float(got["attention"]) == pytest.approx(scores / len(cells), rel=1e-5)
    assert student.logits is not None
    assert teacher.logits is not None
    divergence = F.kl_div(
        (student.logits / 2).log_softmax(-1),
        (teacher.logits / 2).softmax(-1),
        reduction="batchmean",
    )
    soft = (teacher.logits / 2).softmax(-1)
    entropy = -(soft * soft.log()).sum(-1).mean()
    torch.testing.assert_close(got["logits"], 4 * (divergence + entropy))


def test_texts_are_compared_by_what_they_are_pooled_to():
    student, teacher = outputs(1), outputs(2)
    means = [
        [model.hidden[-1][i, : 3 - i].mean(0) for i in range(2)] for model in (student, teacher)
    ]
    cosines = [float(F.cosine_similarity(s, t, dim=0)) for s, t in zip(*means, strict=True)]
    got = terms(EMBEDDINGS, student, teacher, MASK)
    assert set(got) == {"pooled"}
    assert float(got["pooled"]) == pytest.approx(1 - sum(cosines) / 2, rel=1e-5)
    got = terms(replace(EMBEDDINGS, pooling="cls"), student, teacher, MASK)
    s, t = (model.hidden[-1][:, 0] for model in (student, teacher))
    want = 1 - float(F.cosine_similarity(s, t).mean())
    assert float(got["pooled"]) == pytest.approx(want, rel=1e-5)


def test_padding_counts_in_no_term():
    student, teacher = outputs(1), outputs(2)
    before = terms(ALL, student, teacher, MASK)
    for model in (student, teacher):
        for hidden in model.hidden:
            hidden[1, 2] = 1e3 * torch.rand(())
        for scores in model.scores:
            scores[1, :, 2] = scores[1, :, :, 2] = 1e3 * torch.rand(())
    for name, term in terms(ALL, student, teacher, MASK).items():
        torch.testing.assert_close(term, before[name])


def test_a_regression_has_the_distance_of_its_outputs():
    student, teacher = outputs(1, labels=1), outputs(2, labels=1)
    got = terms(Losses(attention=0, hidden=0), student, teacher, MASK, regression=True)
    assert student.logits is not None
    assert teacher.logits is not None
    torch.testing.assert_close(got["logits"], (student.logits - teacher.logits).square().mean())


def test_the_total_is_weighted():
    losses = Losses(attention=0.5, hidden=2, logits=0, labels=3)
    got = {
        "attention": torch.tensor(1.0),
        "hidden": torch.tensor(10.0),
        "labels": torch.ones(()),
    }
    assert float(total(losses, got)) == 0.5 + 20 + 3


def test_terms_without_weight_are_left_out():
    losses = Losses(attention=0, hidden=0, logits=0, labels=1)
    assert not losses.needs_teacher
    assert set(terms(losses, outputs(1), None, MASK)) == {"labels"}


def test_texts_of_other_widths_are_refused():
    with pytest.raises(ValueError, match="3 features in the student, 4 in .* or pooled 0"):
        terms(EMBEDDINGS, outputs(1, features=3), outputs(2), MASK)


def test_fewer_layers_follow_every_kth():
    assert layer_pairs("ab", "123456") == [("a", "3"), ("b", "6")]
    with pytest.raises(ValueError, match="student of 4 layers and a teacher of 6"):
        layer_pairs("abcd", "123456")


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (outputs(1, heads=1), outputs(2), "1 heads in the student, 2 in the teacher"),
        (outputs(1, features=3), outputs(2), "3 features in the student, 4 in the teacher"),
        (outputs(1, labels=2), outputs(2), r"logits \(2, 2\) of the student, \(2, 3\)"),
        (Outputs(None, None), outputs(2), "labels above 0 for data without labels"),
    ],
)
def test_sizes_that_do_not_fit(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        terms(Losses(labels=1), student, teacher, MASK)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": -1}, "hidden -1; expected 0 or more"),
        ({"logits": float("nan")}, "logits nan"),
        ({"temperature": 0}, "temperature 0; expected above 0"),
        ({"pooling": "max"}, "pooling 'max'; expected one of"),
        ({"attention": 0, "hidden": 0, "logits": 0}, "every weight is 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Losses(**settings)
