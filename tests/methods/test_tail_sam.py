"""Tail SAM under a learning rate that rises, stands and falls, beside the same steps by hand."""

import pytest
import torch
from tests.problems import batches, loss_of

import steppe

RATES = [0.05, 0.1, 0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02, 0.01]
RHO = 0.3


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()


def by_hand(begin, warmup, ramp):
    model, radii = net(), []
    for t, (lr, batch) in enumerate(zip(RATES, batches(len(RATES)), strict=True)):
        weights = list(model.parameters())
        g = torch.autograd.grad(loss_of(model)(batch), weights)
        fallen = max(0.0, 1 - lr / (begin * 0.1)) if t >= warmup else 0.0
        rho = RHO * min(fallen / ramp, 1.0) if ramp else RHO * (fallen > 0)
        radii.append(rho)
        length = torch.sqrt(sum((x**2).sum() for x in g))
        start = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for w, x in zip(weights, g, strict=True):
                w += rho * x / length
        there = torch.autograd.grad(loss_of(model)(batch), weights)
        with torch.no_grad():
            for w, s, x in zip(weights, start, there, strict=True):
                w.copy_(s - lr * x)
    return model, radii


@pytest.mark.parametrize(
    ("begin", "warmup", "ramp"), [(1.0, 2, 1.0), (0.5, 2, 1.0), (1.0, 0, 1.0), (1.0, 2, 0.5), (1.0, 2, 0.0)]
)
def test_the_radius_follows_the_rate(begin, warmup, ramp):
    model, ascents = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.TailSAM(model, optimizer, rho=RHO, begin=begin, warmup=warmup, ramp=ramp)
    for lr, batch in zip(RATES, batches(len(RATES)), strict=True):
        optimizer.param_groups[0]["lr"] = lr
        sharp.backward(loss_of(model), batch)
        ascents.append(sharp.last.ascended)
        optimizer.step()
        optimizer.zero_grad()
    expected, radii = by_hand(begin, warmup, ramp)
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert ascents == [rho > 0 for rho in radii] and 0 < sum(ascents) < len(RATES), "a step of radius 0 is one pass"


def test_the_peak_is_a_schedulers_initial_rate():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.25)
    sharp = steppe.TailSAM(model, optimizer, rho=1.0)
    assert sharp.ascent.radius(0, optimizer.param_groups[0]) == pytest.approx(0.75)


@pytest.mark.parametrize("ramp", [0.0, 1.0])
def test_a_rate_that_a_scheduler_brings_back_by_products_stands_at_its_highest(ramp):
    """Of LinearLR's warm-up 0.09999999999999998 is left of 0.1, which is no fall."""
    model, ascents = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=7)
    sharp = steppe.TailSAM(model, optimizer, warmup=7, ramp=ramp)
    for batch in batches(10):
        sharp.backward(loss_of(model), batch)
        ascents.append(sharp.last.ascended)
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()
    assert optimizer.param_groups[0]["lr"] < 0.1, "or there is nothing to test"
    assert not any(ascents)


def test_the_peak_of_one_cycle_is_its_own():
    """It puts a fraction of its peak in the place of the rate that the optimizer was built with."""
    model, ascents = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    sharp = steppe.TailSAM(model, optimizer, rho=RHO, warmup=6)
    for batch in batches(19):
        sharp.backward(loss_of(model), batch)
        ascents.append(sharp.last.ascended)
        optimizer.step()
        optimizer.zero_grad()
        cycle.step()
    assert ascents == [t >= 6 for t in range(19)]  # the peak is step 5
