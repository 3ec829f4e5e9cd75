"""Every metric against scikit-learn or scipy on random data, in pieces as they come from a model."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from steppe.compare import Metric
from steppe.compare.data.examples import Split
from steppe.compare.data.metrics import METRICS, USUAL, chosen, named
from steppe.compare.engine.measure import metrics

RNG = np.random.default_rng(0)
SCORES, LABELS = torch.from_numpy(RNG.normal(size=(90, 4))), torch.from_numpy(RNG.integers(0, 4, 90))
GUESS, TRUTH = torch.from_numpy(RNG.normal(size=(60, 3))), torch.from_numpy(RNG.normal(size=(60, 3)))
P, Y, S = SCORES.softmax(1).numpy(), LABELS.numpy(), SCORES.argmax(1).numpy()
FLAT = GUESS.flatten().numpy(), TRUTH.flatten().numpy()


def _calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    place = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1)
    parts = [place == i for i in range(bins) if (place == i).any()]
    return float(sum(p.mean() * abs(right[p].mean() - confidence[p].mean()) for p in parts))


CLASSES = {
    "accuracy": sk.accuracy_score(Y, S),
    "nll": sk.log_loss(Y, P),
    "ece": _calibration(P.max(1), S == Y),
    "balanced_accuracy": sk.balanced_accuracy_score(Y, S),
    "auroc": sk.roc_auc_score(Y, P, multi_class="ovr", average="macro"),
    "average_precision": sk.average_precision_score(np.eye(4)[Y], P, average="macro"),
    "f1": sk.f1_score(Y, S, average="macro"),
    "matthews": sk.matthews_corrcoef(Y, S),
    "bits_per_byte": sk.log_loss(Y, P) / math.log(2),
    "perplexity": math.exp(sk.log_loss(Y, P)),
}
NUMBERS = {
    "mse": sk.mean_squared_error(FLAT[1], FLAT[0]),
    "mae": sk.mean_absolute_error(FLAT[1], FLAT[0]),
    "r2": sk.r2_score(FLAT[1], FLAT[0]),
    "pearson": stats.pearsonr(*FLAT).statistic,
    "spearman": stats.spearmanr(*FLAT).statistic,
}


def in_pieces(metric: Metric, output: torch.Tensor, target: torch.Tensor, outputs: int) -> float:
    meter = metric.start(outputs)
    for a, b in zip(output.split(37), target.split(37), strict=True):
        meter.update(a, b)
    return float(meter.compute())


@pytest.mark.parametrize("name", CLASSES)
def test_of_classes(name):
    assert in_pieces(METRICS[name], SCORES, LABELS, 4) == pytest.approx(CLASSES[name], abs=1e-6)


def test_of_two_classes_where_one_is_rare():
    scores, labels = SCORES[:, :2], (torch.arange(90) % 30 == 0).long()
    right = {"auroc": sk.roc_auc_score(labels, scores.softmax(1)[:, 1]),
             "balanced_accuracy": sk.balanced_accuracy_score(labels, scores.argmax(1))}  # fmt: skip
    assert {name: in_pieces(METRICS[name], scores, labels, 2) for name in right} == pytest.approx(right, abs=1e-6)


@pytest.mark.parametrize("name", ["balanced_accuracy", "auroc", "average_precision"])
def test_a_class_that_does_not_occur_counts_for_nothing(name):
    """An owner's test may lack one: torchmetrics gives it 0, or the others' wrong answers make it 0."""
    perfect = torch.eye(4).double()[LABELS % 3] * 9
    assert in_pieces(METRICS[name], perfect, LABELS % 3, 4) == 1


@pytest.mark.parametrize("name", NUMBERS)
def test_of_numbers(name):
    assert in_pieces(METRICS[name], GUESS, TRUTH, 3) == pytest.approx(NUMBERS[name], abs=1e-6)


@pytest.mark.parametrize(("zero", "one"), [(0.0, 1e-7), (1e6, 1.0)])
@pytest.mark.parametrize("name", ["r2", "pearson"])
def test_what_has_no_unit_is_the_same_in_every_unit(name, zero, one):
    guess, truth = (zero + one * each.double() for each in (GUESS, TRUTH))
    assert in_pieces(METRICS[name], guess, truth, 3) == pytest.approx(NUMBERS[name], abs=1e-6)


@pytest.mark.parametrize(("name", "zero", "within"), [("pearson", 1e6, 1e-6), ("mse", 0.0, 1e-14), ("mae", 0.0, 1e-14)])
def test_sums_do_not_round_what_they_are_handed(name, zero, within):
    """Also where outputs are far from their targets, as at the beginning of a training: 0.003 of a correlation."""
    guess, truth = GUESS * 1e-3, TRUTH + zero
    right = {"pearson": lambda a, b: stats.pearsonr(a, b).statistic, "mse": sk.mean_squared_error,
             "mae": sk.mean_absolute_error}[name](guess.flatten().numpy(), truth.flatten().numpy())  # fmt: skip
    assert in_pieces(METRICS[name], guess, truth, 3) == pytest.approx(right, abs=within)


def test_every_metric_is_tested():
    assert set(CLASSES) | set(NUMBERS) == set(METRICS)


@pytest.mark.parametrize("name", ["accuracy", "nll", "bits_per_byte", "f1"])
def test_sequences_of_labels_count_label_by_label(name):
    assert in_pieces(METRICS[name], SCORES.view(10, 9, 4), LABELS.view(10, 9), 4) == pytest.approx(CLASSES[name])


def test_the_direction_of_each_is_that_of_a_perfect_prediction():
    perfect = 50.0 * torch.nn.functional.one_hot(LABELS, 4).double()
    for name in METRICS:
        exact, guessed = (TRUTH, GUESS) if name in NUMBERS else (perfect, SCORES)
        target = TRUTH if name in NUMBERS else LABELS
        best, other = (in_pieces(METRICS[name], each, target, 4) for each in (exact, guessed))
        assert METRICS[name].judge.better(best, other) and not METRICS[name].judge.better(other, best), name


def test_no_number_beats_nothing_and_is_beaten_by_all():
    for judge in (METRICS["mse"].judge, METRICS["accuracy"].judge):
        assert judge.better(3.0, math.nan) and not judge.better(math.nan, 3.0) and not judge.better(1.0, 1.0)


def test_one_of_your_own_sees_everything_at_once():
    worst = Metric("worst", of=lambda output, target: (output - target).abs().max(), higher=False)
    assert in_pieces(worst, GUESS, TRUTH, 3) == pytest.approx(float((GUESS - TRUTH).abs().max()))
    assert worst.judge.title == "worst" and not worst.judge.higher


def test_what_a_loss_is_judged_by():
    assert [m.name for m in chosen((), "cross_entropy")] == ["accuracy", "nll"]
    assert [m.name for m in chosen(("r2", "mse"), "mse")] == ["r2", "mse"]
    assert set(USUAL) <= {"cross_entropy", "mse", "mae"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: named("acuracy"), "did you mean 'accuracy'"),
        (lambda: chosen(("mse", "mse"), "mse"), "named twice"),
        (lambda: chosen((), lambda output, target: output), "names its metrics"),
        (lambda: Metric("x"), "needs a function"),
        (lambda: Metric("a b", of=max), "letters, digits"),
    ],
)
def test_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_share_in_per_cent_is_refused_and_an_error_rate_may_be_above_one():
    """An accuracy of 68 was told as 6,833 %."""
    part = Split(SCORES, LABELS)

    def measured(metric: Metric) -> float:
        return metrics(torch.nn.Identity(), part, [metric], 4)["hits"]

    assert measured(Metric("hits", of=lambda output, target: 1.5, higher=False, percent=True)) == 1.5
    assert measured(Metric("hits", of=lambda output, target: 68.0)) == 68.0
    with pytest.raises(ValueError, match="metric 'hits' is 68; with percent=True it is a share of one"):
        measured(Metric("hits", of=lambda output, target: 68.0, percent=True))
