"""The curve against the bowl's closed forms, and in every method's own units."""

import math

import pytest
import torch
from tests import problems
from tests.bowl import G, H, N, W, bowl, bowl_loss

import steppe
from steppe.diagnostics._curve import measure
from steppe.diagnostics._trials import Bench

RADII = (0.1, 0.3, 0.6)


def curve(model, optimizer, loss_of, batches, ascent, radii=RADII, looks=1, **parts):
    bench = Bench(model, optimizer, loss_of, batches)
    build = lambda rho: steppe.SharpnessAware(model, optimizer, ascent=ascent(rho), **parts)  # noqa: E731
    return measure(bench, build, radii, looks)


def on_the_bowl(ascent=lambda rho: steppe.Ascent(rho), radii=RADII):
    model, optimizer = bowl()
    return curve(model, optimizer, lambda _: bowl_loss(model)(), [None], ascent, radii)


@pytest.mark.parametrize("number", range(len(RADII)))
def test_sam_on_the_bowl_equals_its_closed_form(number):
    look, rho = on_the_bowl()[number], RADII[number]
    eps = rho * G / N
    there = H @ (W + eps)
    assert look.rho == rho
    assert look.rise == pytest.approx(float(G @ eps + eps @ H @ eps / 2), rel=1e-12)
    assert look.predicted == pytest.approx(rho * float(N), rel=1e-12)
    assert look.cosine == pytest.approx(float(G @ there / (N * there.norm())), rel=1e-12)
    assert look.change == pytest.approx(float((there - G).norm() / N), rel=1e-12)
    assert look.moved == pytest.approx(rho / float(W.norm()), rel=1e-12)


def test_asam_is_measured_in_its_own_metric():
    look = on_the_bowl(lambda rho: steppe.Ascent(rho, metric=steppe.Adaptive(0.01)))[1]
    t = W.abs() + 0.01
    assert look.predicted == pytest.approx(0.3 * float((t * G).norm()), rel=1e-12)


def test_layer_wise_radii_are_shares_of_the_weights():
    look = on_the_bowl(lambda rho: steppe.Ascent(rho, scope="trust"))[1]
    assert look.moved == pytest.approx(0.3, rel=1e-12)


def test_noise_is_the_noise_and_not_the_gradient():
    look = on_the_bowl(lambda rho: steppe.Ascent(rho, steppe.Noise(), scope="none"))[1]
    noise = steppe.Noise().vector({"w": W}, None, {}, 0, 0)["w"]
    assert look.moved == pytest.approx(0.3 * float(noise.norm() / W.norm()), rel=1e-12)
    assert look.predicted == pytest.approx(0.3 * float(noise @ G), rel=1e-12)


class Carrying(torch.nn.Module):
    """Adds what the forward before has left: in a buffer, and in an attribute of the loss's own."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(5, 3).double()
        self.register_buffer("mean", torch.ones(5, dtype=torch.float64))

    def forward(self, x):
        self.mean.mul_(0.5).add_(x.detach().mean(0))
        return self.body(x - self.mean)


def test_what_a_pass_leaves_is_no_rise_of_the_next():
    torch.manual_seed(0)
    model, batches = Carrying(), [next(iter(problems.batches(1)))]
    kept = {"h": torch.zeros(3, dtype=torch.float64)}

    def loss_of(batch):
        output = model(batch[0]) + kept["h"]
        kept["h"] = output.detach().mean(0)
        return torch.nn.functional.cross_entropy(output, batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for look in curve(model, optimizer, loss_of, batches, lambda rho: steppe.Ascent(rho), (1e-5, 1e-4)):
        assert look.rise == pytest.approx(look.predicted, rel=1e-3) and look.cosine > 1 - 1e-6


def test_weights_that_the_optimizer_does_not_step_are_as_good_as_frozen():
    """Training the head alone, whether the body was told so or not."""
    found = []
    for frozen in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3)).double()
        model[0].requires_grad_(not frozen)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        batches = list(problems.batches(2))
        found.append(
            curve(model, optimizer, problems.loss_of(model), batches, lambda rho: steppe.Ascent(rho), (0.1, 0.5), 2)
        )
    assert len(found[0]) == 2 and found[0] == found[1]


def test_a_linear_loss_stays_linear():
    model, optimizer = bowl()
    looks = curve(model, optimizer, lambda _: model.w @ G, [None], lambda rho: steppe.Ascent(rho), (0.1, 0.5))
    assert len(looks) == 2
    for look in looks:
        assert look.rise == pytest.approx(look.predicted, rel=1e-12)
        assert look.cosine == pytest.approx(1.0) and look.change == pytest.approx(0.0, abs=1e-12)


def test_the_mean_over_batches():
    model, optimizer = bowl()
    factors = [1.0, 3.0]
    one, two = (
        curve(model, optimizer, lambda c: c * bowl_loss(model)(), batches, lambda rho: steppe.Ascent(rho), looks=looks)
        for batches, looks in ((factors[:1], 1), (factors, 2))
    )
    assert two[0].rise == pytest.approx(2 * one[0].rise) and two[0].cosine == pytest.approx(one[0].cosine)


def test_a_few_samples_give_the_direction_and_the_whole_batch_the_measure():
    model, optimizer = problems.net(dropout=0.0), None
    model.norm.eval()  # batch statistics of a slice are others
    optimizer = problems.BASES["sgd"](model)
    x, y = problems.BATCH
    f, parameters = problems.loss_of(model), [p for p in model.parameters() if p.requires_grad]
    whole, few = (torch.autograd.grad(f(b), parameters) for b in ((x, y), (x[:2], y[:2])))
    length = torch.sqrt(sum((g**2).sum() for g in few))
    expected = 0.1 * sum((a * b).sum() for a, b in zip(whole, few, strict=True)) / length
    found = curve(model, optimizer, f, [problems.BATCH], lambda rho: steppe.Ascent(rho), (0.1,), look=steppe.Look(2))
    assert found[0].predicted == pytest.approx(float(expected), rel=1e-10)


def test_the_same_masks_at_every_radius():
    model = problems.net(dropout=0.5)
    optimizer = problems.BASES["sgd"](model)
    tiny = curve(model, optimizer, problems.loss_of(model), [problems.BATCH], lambda rho: steppe.Ascent(rho), (1e-6,))
    assert tiny[0].cosine == pytest.approx(1.0, abs=1e-6) and tiny[0].change < 1e-3


def test_a_look_at_everything_draws_the_masks_of_the_whole_batch():
    found = []
    for look in (None, steppe.Look(view=lambda batch: batch)):
        model = problems.net(dropout=0.5)
        optimizer, f = problems.BASES["sgd"](model), problems.loss_of(model)
        found.append(curve(model, optimizer, f, [problems.BATCH], steppe.Ascent, look=look))
    assert found[0] == found[1]


def test_it_ends_where_the_perturbation_outgrows_the_weights():
    size = float(W.norm())
    looks = on_the_bowl(radii=(0.5 * size, 0.9 * size, 1.1 * size, 2 * size))
    assert [round(look.moved, 6) for look in looks] == [0.5, 0.9]


def test_it_ends_where_the_loss_is_no_number():
    model, optimizer = bowl()
    wall = lambda _: bowl_loss(model)() + torch.where((model.w - W).norm() > 0.5, math.inf, 0.0)  # noqa: E731
    found = curve(model, optimizer, wall, [None], lambda rho: steppe.Ascent(rho), (0.1, 0.4, 0.6, 0.8))
    assert [look.rho for look in found] == [0.1, 0.4]


def test_of_many_radii_every_second_is_measured():
    many = tuple(0.01 * (i + 1) for i in range(12))
    assert [look.rho for look in on_the_bowl(radii=many)] == list(many[::2])


def test_momentum_is_looked_at_along_the_gradient():
    look = on_the_bowl(lambda rho: steppe.Ascent(rho, direction=steppe.Momentum(decay=0.9)))[0]
    assert look.predicted == pytest.approx(0.1 * float(N), rel=1e-12)
