"""Which radii are tried, in which order, and what a trial is worth."""

import pytest
import torch
from tests import problems
from tests.bowl import LR, RHO, bowl, bowl_loss

import steppe
from steppe.diagnostics._trials import MOST, Bench, downward

RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


class Made:
    """A bench whose losses are known: 2 before, 1 after the base, and ``share`` of that fall with a method."""

    def __init__(self, share, base=1.0):
        self.share, self.base, self.tried = share, base, []

    def loss(self, looks):
        return 2.0

    def after(self, steps, looks, build=None):
        if build is None:
            return 2.0 - self.base
        self.tried.append(build.keywords["rho"])
        return 2.0 - self.base * self.share(build.keywords["rho"])


def tried(share, start=0.05, radii=RADII, **kwargs):
    made = Made(share)
    trials = downward(made, lambda model, optimizer, rho: None, radii, start, steps=10, looks=1, keep=0.5, **kwargs)
    return made.tried, trials


def test_one_trial_where_it_keeps_enough():
    """None above, however well it goes."""
    order, trials = tried(lambda rho: 1.0)
    assert order == [0.05] and {t.rho: t.kept for t in trials} == pytest.approx({0.05: 1.0})


def test_downward_until_a_radius_keeps_enough():
    order, trials = tried(lambda rho: 0.9 if rho <= 0.01 else 0.1)
    assert order == [0.05, 0.02, 0.01]
    assert [t.rho for t in trials] == [0.01, 0.02, 0.05], "by growing radius"


def test_no_further_than_the_radii_go():
    assert tried(lambda rho: 0.0)[0] == [0.05, 0.02, 0.01]


def test_not_for_ever():
    radii = tuple(float(i) for i in range(1, 40))
    assert tried(lambda rho: 0.0, start=30.0, radii=radii)[0] == [30.0 - i for i in range(MOST)]


@pytest.mark.parametrize("base", [0.0, -1.0, 0.03, float("nan")])
def test_none_where_the_base_learns_nothing(base):
    made = Made(lambda rho: 1.0, base)
    assert downward(made, None, RADII, 0.05, steps=10, looks=1, keep=0.5) == () and not made.tried


def test_a_diverged_trial_keeps_nothing():
    order, trials = tried(lambda rho: 1.0 if rho < 0.05 else float("-inf"))
    assert order == [0.05, 0.02] and trials[-1].kept == float("-inf")


def bench(lr=LR):
    model, optimizer = bowl()
    optimizer.param_groups[0]["lr"] = lr
    return Bench(model, optimizer, lambda _: bowl_loss(model)(), [None, None])


def test_a_training_is_the_loop_by_hand():
    one, (model, optimizer) = bench(), bowl()
    one.train([None] * 5)
    for _ in range(5):
        optimizer.zero_grad()
        bowl_loss(model)().backward()
        optimizer.step()
    assert torch.equal(one.model.w, model.w)


def test_the_loss_after_a_training_is_the_mean_of_four_moments():
    one, (model, optimizer) = bench(), bowl()
    sharp = steppe.SAM(model, optimizer, rho=RHO)
    losses = []
    for _ in range(32):
        sharp.backward(bowl_loss(model))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(bowl_loss(model)().detach()))
    found = one.after(32, 1, lambda m, o: steppe.SAM(m, o, rho=RHO))
    assert found == pytest.approx(sum(losses[i - 1] for i in (26, 28, 30, 32)) / 4, rel=1e-12)


def test_nothing_of_a_training_stays():
    one = bench()
    before = problems.everything(one.model)
    first = one.after(8, 1)
    assert problems.same(before, problems.everything(one.model)) and not one.optimizer.state
    assert one.after(8, 1) == first


def test_a_base_that_diverges_is_infinitely_bad():
    assert bench(lr=1e200).after(20, 1) == float("inf")


def test_the_loss_of_the_batches_looked_at():
    model, optimizer = bowl()
    one = Bench(model, optimizer, lambda c: c * bowl_loss(model)(), [1.0, 2.0, 30.0])
    assert one.loss(2) == pytest.approx(1.5 * float(bowl_loss(model)().detach()))
    assert model.w.grad is None
