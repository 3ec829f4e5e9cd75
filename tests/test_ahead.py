"""Directions known before any pass of the step: the only pass is at w + eps, with every other part."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.directions_ahead import DIRECTIONS, RHO, ahead, begun, each, known
from tests.problems import BASES, BATCH, batches, close, everything, grads, loss_of, make, net, same, train, weights
from torch import Tensor

import steppe

# One pass, at w + eps


@each
@pytest.mark.parametrize("base", BASES)
def test_the_only_pass_is_at_w_plus_eps(name: str, base: str) -> None:
    model = net(dropout=0)
    optimizer = BASES[base](model)
    sharp = steppe.SharpnessAware(model, optimizer, ascent=ahead(name))
    sharp.backward(loss_of(model), BATCH)
    last = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    optimizer.zero_grad()
    moment = {"sgd": "momentum_buffer", "adamw": "exp_avg"}[base]
    sign = -1 if name in ("momentum", "average") else 1
    v = {n: sign * x for n, x in last.items()}
    if name in ("momentum", "uphill"):
        v = {n: sign * optimizer.state[p][moment] for n, p in model.named_parameters() if n in last}
    length = torch.sqrt(sum((x**2).sum() for x in v.values()))  # type: ignore[arg-type]
    before, seen = everything(model), []

    def closure() -> Tensor:
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return loss_of(model)(BATCH)

    loss = sharp.backward(closure)
    assert len(seen) == 1
    for n, x in v.items():
        torch.testing.assert_close(seen[0][n], before[n] + RHO * x / length, rtol=1e-12, atol=1e-14)
    assert same(weights(before), weights(everything(model)))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for n, p in twin.named_parameters():
            p.copy_(seen[0][n])
    twin.zero_grad()
    top = loss_of(twin)(BATCH)
    top.backward()
    close(grads(model), grads(twin), rtol=0, atol=0)
    assert loss == top and sharp.last.ascended and sharp.last.perturbed_loss == top
    assert sharp.last.loss is None and sharp.last.surrogate_gap is None


@each
def test_the_first_step_is_a_plain_one(name: str) -> None:
    model, plain = net(), net()
    _, sharp = make(model, ascent=ahead(name))
    torch.manual_seed(1)
    loss = sharp.backward(loss_of(model), BATCH)
    torch.manual_seed(1)
    expected = loss_of(plain)(BATCH)
    expected.backward()
    close(grads(model), grads(plain), rtol=0, atol=0)
    assert not sharp.last.ascended and loss == expected == sharp.last.loss


@each
def test_statistics_and_generators_move_as_in_one_pass(name: str) -> None:
    model = net()
    optimizer, sharp = make(model, ascent=ahead(name))
    train(model, optimizer, sharp, 3)
    assert model.norm.num_batches_tracked == 3
    torch.manual_seed(5)
    sharp.backward(loss_of(model), BATCH)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    loss_of(model)(BATCH)
    assert torch.equal(after, torch.get_rng_state()) and model.norm.num_batches_tracked == 5  # ours and the plain one


def test_msam_is_the_authors_loop_without_its_swap() -> None:
    """The paper's loop keeps w - rho v/||v|| between steps; its exact weights and gradients are ours."""
    model, twin = net(dropout=0), net(dropout=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp = steppe.MSAM(model, optimizer, rho=RHO)
    moved = [p for p in twin.parameters() if p.requires_grad]
    v: list[Tensor] = [torch.zeros_like(p) for p in moved]
    shift = [torch.zeros_like(p) for p in moved]
    for batch in batches(8):
        sharp.backward(loss_of(model), batch)
        optimizer.step()
        optimizer.zero_grad()
        found = torch.autograd.grad(loss_of(twin)(batch), moved)
        with torch.no_grad():
            v = [0.9 * b + g for b, g in zip(v, found, strict=True)]
            length = torch.sqrt(sum((b**2).sum() for b in v))  # type: ignore[arg-type]
            for i, p in enumerate(moved):
                p += -shift[i] - 0.05 * v[i]
                torch.testing.assert_close(p.detach(), [q for q in model.parameters() if q.requires_grad][i].detach())
                shift[i] = -RHO * v[i] / length
                p += shift[i]


@each
@pytest.mark.parametrize("failing", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_error_in_the_pass_leaves_the_weights(name: str, failing: BaseException) -> None:
    model, optimizer, sharp, _ = begun(name)
    before = everything(model)

    def closure() -> Tensor:
        raise failing

    with pytest.raises(type(failing)):
        sharp.backward(closure)
    assert same(before, everything(model)) and all(p.grad is None for p in model.parameters())
    model.state_dict()
    sharp.backward(loss_of(model), BATCH)
    assert sharp.last.ascended


# With the other parts


@each
@pytest.mark.parametrize("metric", [steppe.Identity(), steppe.Adaptive()])
@pytest.mark.parametrize("scope", ["global", "tensor", "group", "trust", "paper"])
def test_every_scope_and_metric_is_the_ascents_own(name: str, scope: str, metric: Any) -> None:
    """As if the vector were a gradient: what Ascent makes of it is tested elsewhere."""
    model, optimizer, sharp, last = begun(name)
    sharp.ascent = ahead(name, scope=scope, metric=metric)
    v = known(name, model, optimizer, last)
    if name == "average":  # (1 - decay) of it; in scope "paper" the length counts
        v = {n: 0.2 * g for n, g in v.items()}
    start = {n: p.detach().clone() for n, p in model.named_parameters() if n in v}
    plain = steppe.Ascent(rho=RHO, scope=scope, metric=metric)
    eps, _ = plain.perturbation(
        start, {n: v[n].clone() for n in start}, dict.fromkeys(start, RHO), dict.fromkeys(start, 0), {}
    )
    with sharp.perturbed():
        for n, p in model.named_parameters():
            if n in v:
                torch.testing.assert_close(p.detach(), start[n] + eps[n], rtol=1e-12, atol=1e-14)


@each
def test_radius_of_curves_and_groups(name: str) -> None:
    model, optimizer, sharp, _ = begun(name)
    sharp.ascent, sharp.measure = steppe.Ascent(steppe.curves.Linear(0.0, 0.4, 4), DIRECTIONS[name]), True
    sharp.backward(loss_of(model), BATCH)
    torch.testing.assert_close(sharp.last.perturbation_norm, torch.tensor(0.1, dtype=torch.float64))
    optimizer.param_groups[0]["rho"] = 0.7
    sharp.backward(loss_of(model), BATCH)
    torch.testing.assert_close(sharp.last.perturbation_norm, torch.tensor(0.7, dtype=torch.float64))


COMBINES: dict[str, tuple[steppe.Combine, int]] = {
    "mix": (steppe.Mix(0.6), 2), "mix 1": (steppe.Mix(1.0), 1), "gsam": (steppe.SurrogateGap(0.4), 2),
    "reuse": (steppe.Reuse(), 2), "wsam": (steppe.Decoupled(0.6), 2),
}  # fmt: skip


@each
@pytest.mark.parametrize("how", COMBINES)
def test_a_combination_that_needs_the_clean_gradient_has_its_pass(name: str, how: str) -> None:
    combine, passes = COMBINES[how]
    model, optimizer, sharp, last = begun(name, combine=combine)
    twin = copy.deepcopy(model)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(model)(BATCH)

    v = known(name, model, optimizer, last)
    clean_loss = loss_of(twin)(BATCH)
    clean_loss.backward()
    clean = {n: p.grad.clone() for n, p in twin.named_parameters() if p.grad is not None}
    twin.zero_grad()
    length = torch.sqrt(sum((x**2).sum() for x in v.values()))  # type: ignore[arg-type]
    with torch.no_grad():
        for n, p in twin.named_parameters():
            if n in v:
                p += RHO * v[n] / length
    loss_of(twin)(BATCH).backward()
    perturbed = {n: p.grad.clone() for n, p in twin.named_parameters() if p.grad is not None}
    expected = combine.ascended(1, clean, perturbed, {}).grads
    loss = sharp.backward(closure)
    assert calls == passes and model.norm.num_batches_tracked == 2
    close({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, expected, rtol=1e-10, atol=1e-12)  # type: ignore[arg-type]
    assert bool(loss == clean_loss) is (passes == 2)


@each
def test_schedules(name: str) -> None:
    """Every(2): plain steps between; AE-SAM's rule reads the gradient at w and so has a pass of its own."""
    model = net()
    optimizer, sharp = make(model, ascent=ahead(name), schedule=steppe.Every(2))
    ascended = []
    for batch in batches(6):
        sharp.backward(loss_of(model), batch)
        ascended.append(sharp.last.ascended)
        optimizer.step()
        optimizer.zero_grad()
    assert ascended == [False, False, True, False, True, False]  # nothing is known at step 0
    model = net()
    optimizer, sharp = make(model, ascent=ahead(name), schedule=steppe.AboveNorm(total_steps=12))
    calls, ascents = 0, 0

    def counting(batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return loss_of(model)(batch)

    for batch in batches(12):
        sharp.backward(counting, batch)
        ascents += sharp.last.ascended
        optimizer.step()
        optimizer.zero_grad()
    assert calls == 12 + ascents and 0 < ascents < 12 and model.norm.num_batches_tracked == 12
