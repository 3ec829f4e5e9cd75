"""The rise of the loss within a radius: closed forms, a loop by hand, groups of m samples, the model afterwards."""

import copy
import math

import pytest
import torch
from tests import problems
from tests.bowl import BOWL, H, Tensors, W, bowl_loss
from tests.diagnostics.test_untouched import prepared, state
from torch import nn

import steppe
from steppe.diagnostics import m_sharpness

D = len(BOWL.start)


def on_the_bowl(w, **options):
    model = Tensors(w=w)
    loss = bowl_loss(model)
    return m_sharpness(model, lambda _: loss(), [None], **options)


def test_one_climb_on_a_quadratic():
    g = H @ W
    for rise in on_the_bowl(W, radii=(0.1, 0.5)).rises:
        eps = rise.rho * g / g.norm()
        assert rise.worst == pytest.approx(float(g @ eps + eps @ H @ eps / 2), rel=1e-10)


def test_many_climbs_near_a_minimum_find_the_largest_eigenvalue():
    largest = float(torch.linalg.eigvalsh(H)[-1])
    (rise,) = on_the_bowl(1e-9 * W, radii=(0.3,), climbs=200).rises
    assert rise.worst == pytest.approx(0.3**2 / 2 * largest, rel=1e-6)
    (first,) = on_the_bowl(1e-9 * W, radii=(0.3,)).rises
    assert first.worst < rise.worst


def test_the_highest_of_all_climbs_counts():
    """w - w^2 from 0.2: the first climb ends at 0.7, beyond the top, from where the second goes down to -0.3."""
    model = Tensors(w=torch.tensor([0.2]).double())
    (rise,) = m_sharpness(model, lambda _: (model.w - model.w**2).sum(), [None], (0.5,), climbs=2).rises
    assert rise.worst == pytest.approx(0.21 - 0.16)


def test_random_directions_follow_the_seed():
    first, again, other = (on_the_bowl(W, radii=(0.3,), seed=seed).rises[0] for seed in (0, 0, 1))
    assert first == again and first.worst == other.worst and first.average != other.average


def test_the_average_at_a_minimum_is_the_trace():
    (rise,) = on_the_bowl(torch.zeros(D, dtype=torch.float64), radii=(0.3,), draws=150).rises
    expected = 0.3**2 / (2 * D) * float(H.trace())
    assert abs(rise.average - expected) < 4 * rise.error
    assert rise.error < 0.2 * expected
    assert rise.worst == 0.0, "there is no direction to climb along at the minimum"


def by_hand(model, batch, rho, eta=None):
    """L(w + eps) - L(w) the slow way, on a copy."""
    twin = copy.deepcopy(model)
    loss = problems.loss_of(twin)(batch)
    named = dict(twin.named_parameters())
    grads = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    t = {n: torch.ones_like(w) if eta is None or "bias" in n else w.abs() + eta for n, w in named.items()}
    length = math.sqrt(sum(((t[n] * g) ** 2).sum().item() for n, g in grads.items()))
    with torch.no_grad():
        for n, w in named.items():
            w += rho * t[n] ** 2 * grads[n] / length
        return float(problems.loss_of(twin)(batch) - loss)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


@pytest.mark.parametrize("eta", [None, 0.01])
def test_groups_of_m_samples_by_hand(eta):
    model, batches = network(), list(problems.batches(2, size=8))
    ascent = None if eta is None else steppe.Ascent(metric=steppe.Adaptive(eta))
    found = m_sharpness(model, problems.loss_of(model), batches, (0.2, 0.05), m=3, ascent=ascent)
    cuts = [(x[i : i + 3], y[i : i + 3]) for x, y in batches for i in (0, 3, 6)]
    assert found.groups == 6
    for rise, rho in zip(found.rises, (0.05, 0.2), strict=True):
        rises = [by_hand(model, cut, rho, eta) * len(cut[1]) for cut in cuts]
        assert rise.worst == pytest.approx(sum(rises) / 16, rel=1e-10)


def test_without_m_all_batches_are_one_group():
    model, batches = network(), list(problems.batches(2, size=8))
    whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    (rise,) = m_sharpness(model, problems.loss_of(model), batches, (0.1,)).rises
    assert rise.worst == pytest.approx(by_hand(model, whole, 0.1), rel=1e-10)


def test_a_random_direction_has_the_radius_in_the_metric():
    model, eta, moved = network(), 0.1, []
    start = {n: w.detach().clone() for n, w in model.named_parameters()}

    def loss_of(batch):
        moved.append({n: w.detach() - start[n] for n, w in model.named_parameters()})
        return problems.loss_of(model)(batch)

    ascent = steppe.Ascent(metric=steppe.Adaptive(eta))
    m_sharpness(model, loss_of, problems.batches(1), (0.2,), ascent=ascent, draws=1)
    eps = moved[-1]  # the last pass is the draw
    stretched = [e if "bias" in n else e / (start[n].abs() + eta) for n, e in eps.items()]
    assert float(sum((e**2).sum() for e in stretched)) == pytest.approx(0.2**2, rel=1e-10)


def test_only_the_subset_is_moved():
    model, optimizer = prepared()
    seen = []

    def loss_of(batch):
        seen.append(model.first.weight.detach().clone())
        return problems.loss_of(model)(batch)

    found = m_sharpness(model, loss_of, problems.batches(1), (5.0,), ascent=steppe.Ascent(subset="norm"))
    assert all(torch.equal(w, model.first.weight) for w in seen)
    assert found.rises[0].worst > 0 and found.rises[0].average != 0


def test_everything_is_as_before():
    model, optimizer = prepared()
    before = state(model, optimizer)
    m_sharpness(model, problems.loss_of(model), problems.batches(2), m=4, climbs=2)
    assert problems.same(before, state(model, optimizer))


def test_everything_is_as_before_after_an_error_at_moved_weights():
    model, optimizer = prepared()
    before, start = state(model, optimizer), model.first.weight.detach().clone()

    def loss_of(batch):
        if not torch.equal(model.first.weight, start):
            raise KeyError("enough")
        return problems.loss_of(model)(batch)

    with pytest.raises(KeyError, match="enough"):
        m_sharpness(model, loss_of, problems.batches(2))
    assert problems.same(before, state(model, optimizer))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"radii": ()}, "expected numbers above 0, at least one"),
        ({"radii": (0.1, 0.0)}, "expected numbers above 0"),
        ({"m": 0}, "m=0 was given; expected a whole number of at least 1"),
        ({"climbs": 0}, "climbs=0"),
        ({"draws": 0}, "draws=0"),
        ({"ascent": steppe.Ascent(beta=0.5)}, "expected one along the gradient of the samples themselves"),
        ({"ascent": steppe.Ascent(direction=steppe.Momentum())}, "expected one along the gradient"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, sentence):
    model = network()
    with pytest.raises(ValueError, match=sentence):
        m_sharpness(model, problems.loss_of(model), problems.batches(1), **options)


def test_the_picture_and_the_numbers():
    model = network()
    found = m_sharpness(model, problems.loss_of(model), problems.batches(1), (0.1, 0.2), m=4, draws=1)
    worst, average = found.plot(label="base").get_lines()
    assert list(worst.get_ydata()) == [r.worst for r in found.rises]
    assert worst.get_label() == "base, worst of 4" and average.get_label() == "base, on average"
    assert found.as_dict()["rises"][0]["error"] is None


def test_groups_count_by_what_is_weighed():
    """Means over rows that count, of which a group of no such row has none, beside the same by hand."""
    model = network()
    inputs, labels = torch.randn(6, 5).double(), torch.tensor([0, -100, 1, -100, -100, 2])

    def loss_of(batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def weigh(batch):
        return int((batch[1] != -100).sum())

    found = m_sharpness(model, loss_of, [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])], (0.3,), m=2, weigh=weigh)
    kept = [(inputs[:2], labels[:2]), (inputs[2:3], labels[2:3]), (inputs[5:], labels[5:])]
    (rise,), each = found.rises, [m_sharpness(model, loss_of, [one], (0.3,)).rises[0].worst for one in kept]
    assert found.m == 2 and found.groups == 3 and rise.worst == pytest.approx(sum(each) / 3)
    assert found.loss == pytest.approx(float(loss_of((inputs, labels))))
