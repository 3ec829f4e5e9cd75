"""One network, several optimizers: one perturbation over all of them, and one step for each round."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import reference
from tests.situations.standins import (
    MECHANISMS,
    STEPS,
    Chained,
    Lookahead,
    backward,
    by_hand,
    cases,
    gap,
    mechanisms,
    recipe,
    torch_base,
)
from tests.trajectory_cases import Case
from torch import Tensor, nn
from torch.optim import Optimizer

import steppe
from steppe.integrations.closure import SharpOptimizer

ALL = cases("adasam")
IN_THE_TABLE = ("sam", "asam", "layer_sam", "grst", "look_sam", "adasam", "gsam", "fsam", "wsam", "aesam")
"""Methods that the README's table of loops has a column for."""


def halves(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices, and the rest."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return matrices, [p for p in model.parameters() if p.ndim != 2]


def muon_and_adamw(model: nn.Module) -> list[Optimizer]:
    matrices, rest = halves(model)
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=0.01)]


def sgd_and_lookahead(model: nn.Module) -> list[Optimizer]:
    first, second = halves(model)
    return [torch.optim.SGD(first, lr=0.1, momentum=0.9), Lookahead(torch.optim.AdamW(second, lr=0.01))]


def step(optimizers: list[Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()


def beneath(optimizers: list[Optimizer]) -> list[Optimizer]:
    return [getattr(o, "optimizer", o) for o in optimizers]


SHOWN = [case for case in cases() if case.method in (*IN_THE_TABLE, *MECHANISMS)]
MADE = [(case, muon_and_adamw) for case in SHOWN]
MADE += [(case, sgd_and_lookahead) for case in mechanisms("sam", "look_sam", "wsam", "s2_sam", "msam")]


@pytest.mark.parametrize(("case", "make"), MADE, ids=lambda x: getattr(x, "method", getattr(x, "__name__", None)))
def test_every_method_equals_the_loop_by_hand(
    case: Case, make: Callable[[nn.Module], list[Optimizer]], record_property: Callable[[str, object], None]
) -> None:
    if case.method in IN_THE_TABLE:
        record_property("loop", "several optimizers")
        record_property("method", case.method)
    if case.base[0] == "amsgrad":  # AdaSAM's own

        def make(model: nn.Module) -> list[Optimizer]:
            return [torch_base(case, half) for half in halves(model)]

    mine, hand = reference.MLP().module(), reference.MLP().module()
    optimizers = make(mine)
    sharp = recipe(case, mine, optimizers)
    assert sharp.optimizer is optimizers
    for t in range(STEPS):
        backward(sharp, case, mine, t)
        step(optimizers)
        mine.zero_grad()
        assert sharp.step == t + 1
    theirs = make(hand)
    by_hand(case, hand, lambda: step(theirs), beneath(theirs))
    assert gap(mine, hand) <= 1e-10


@pytest.mark.parametrize("given", ["tuple", "one object", "each its own zero_grad", "the other order"])
@pytest.mark.parametrize("method", ["look_sam", "wsam", "s2_sam"])
def test_forms_of_the_same_two(method: str, given: str) -> None:
    """Zeroing between the steps and the order of the steps make no difference."""
    case = next(c for c in ALL if c.method == method)
    ends = []
    for form in ("list", given):
        model = reference.MLP().module()
        two = muon_and_adamw(model)
        sharp = recipe(case, model, {"tuple": tuple(two), "one object": Chained(*two)}.get(form, two))
        for t in range(STEPS):
            backward(sharp, case, model, t)
            for optimizer in two[::-1] if form == "the other order" else two:
                optimizer.step()
                if form == "each its own zero_grad":
                    optimizer.zero_grad()
            model.zero_grad()
        ends.append(model)
        assert sharp.step == STEPS
    assert gap(*ends) == 0


def test_groups_keep_their_own_radius() -> None:
    model, hand = reference.MLP().module(), reference.MLP().module()

    def make(model: nn.Module, **more: Any) -> list[Optimizer]:
        first, second = halves(model)
        return [torch.optim.SGD([{"params": first} | more], lr=0.1), torch.optim.AdamW(second, lr=0.01)]

    optimizers = make(model, rho=0.3)
    sharp = steppe.SAM(model, optimizers, rho=0.1)
    case = Case("sam", {"rho": {n: 0.3 if p.ndim == 2 else 0.1 for n, p in hand.named_parameters()}})
    for t in range(STEPS):
        backward(sharp, case, model, t)
        step(optimizers)
        model.zero_grad()
    theirs = make(hand)
    by_hand(case, hand, lambda: step(theirs), theirs)
    assert gap(model, hand) <= 1e-10


def test_saved_and_resumed_bit_for_bit() -> None:
    for case in mechanisms():
        model = reference.MLP().module()
        optimizers = muon_and_adamw(model)
        sharp = recipe(case, model, optimizers)

        def go(model: nn.Module, sharp: Any, optimizers: list[Optimizer], steps: range, case: Case = case) -> None:
            for t in steps:
                backward(sharp, case, model, t)
                step(optimizers)
                model.zero_grad()

        go(model, sharp, optimizers, range(4))
        file = io.BytesIO()
        torch.save([model.state_dict(), [o.state_dict() for o in optimizers], sharp.state_dict()], file)
        file.seek(0)
        weights, states, state = torch.load(file, weights_only=True)
        again = reference.MLP().module()
        again.load_state_dict(weights)
        others = muon_and_adamw(again)
        for optimizer, saved in zip(others, states, strict=True):
            optimizer.load_state_dict(saved)
        resumed = recipe(case, again, others)
        resumed.load_state_dict(state)
        go(model, sharp, optimizers, range(4, 9))
        go(again, resumed, others, range(4, 9))
        assert gap(model, again) == 0 and resumed.step == 9, case.method


class Scaled:
    """A GradScaler on the CPU, an overflow in the gradients of chosen optimizers at chosen steps."""

    def __init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def __call__(self, sharp: Any, optimizers: list[Optimizer], model: nn.Module, t: int, broken: list[int]) -> None:
        batch = reference.MLP().torch_batch(t)
        sharp.backward(
            lambda b: reference.MLP.torch_loss(model, b),
            batch,
            backward=lambda loss: self.scaler.scale(loss).backward(),
        )
        for i in broken:
            optimizers[i].param_groups[0]["params"][0].grad[0] = torch.inf
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        model.zero_grad()


@pytest.mark.parametrize("method", ["sam", "look_sam", "wsam", "s2_sam"])
@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_skips_both_or_one(method: str, fused: bool) -> None:
    """Both skipped: the round never was. One skipped: the other's step was real, so the round counts."""
    case = next(c for c in ALL if c.method == method)

    def make(model: nn.Module) -> list[Optimizer]:
        first, second = halves(model)
        return [torch.optim.AdamW(first, lr=0.01, fused=fused), torch.optim.SGD(second, lr=0.1, fused=fused)]

    mine, hand = reference.MLP().module(), reference.MLP().module()
    optimizers, run = make(mine), Scaled()
    sharp = recipe(case, mine, optimizers)
    counted = []
    for t in range(STEPS):
        if t == 3:  # a batch that overflowed in both: nothing of it may stay
            other = copy.deepcopy({k: v.clone() for k, v in mine.state_dict().items()})
            run(sharp, optimizers, mine, t, [0, 1])
            assert all(torch.equal(other[k], v) for k, v in mine.state_dict().items())
            counted.append(sharp.step)
        run(sharp, optimizers, mine, t, [])
        counted.append(sharp.step)
    assert counted == [1, 2, 3, 3, *range(4, STEPS + 1)]
    theirs = make(hand)
    by_hand(case, hand, lambda: step(theirs), theirs)
    assert gap(mine, hand) <= 1e-10

    before = {n: p.detach().clone() for n, p in mine.named_parameters()}
    run(sharp, optimizers, mine, STEPS, [0])
    assert sharp.step == STEPS + 1
    moved = {n for n, p in mine.named_parameters() if not torch.equal(before[n], p)}
    assert moved == {n for n, p in mine.named_parameters() if p.ndim != 2}


def test_clipping_each_by_itself_scales_the_correction_of_each() -> None:
    """WSAM: w <- w - lr c gamma/(1-gamma) (g~ - g) with the factor c by which each one's gradient was clipped."""

    def make(model: nn.Module) -> list[Optimizer]:
        return [torch.optim.SGD(half, lr=0.1) for half in halves(model)]

    model, hand = reference.MLP().module(), reference.MLP().module()
    optimizers, plain = make(model), make(hand)
    sharp = steppe.WSAM(model, optimizers, rho=0.1, gamma=0.6)
    problem = reference.MLP()
    for t in range(STEPS):
        sharp.backward(lambda b: problem.torch_loss(model, b), problem.torch_batch(t))
        w = {n: p.detach().numpy().copy() for n, p in hand.named_parameters()}
        g = problem.grad(w, t)
        eps = reference.perturbations.spherical(w, g, 0.1)
        d = problem.grad({k: w[k] + eps[k] for k in w}, t)
        for n, p in hand.named_parameters():
            p.grad = torch.from_numpy(g[n].copy())
        for mine, theirs, most in zip(halves(model), halves(hand), (0.2, 0.05), strict=True):
            nn.utils.clip_grad_norm_(mine, most)
            total = nn.utils.clip_grad_norm_(theirs, most)
            names = {p: n for n, p in hand.named_parameters()}
            factor = min(1.0, most / (float(total) + 1e-6))
            with torch.no_grad():
                for p in theirs:
                    p -= 0.1 * 1.5 * factor * torch.from_numpy(d[names[p]] - g[names[p]])
        step(optimizers)
        step(plain)
        model.zero_grad()
    assert gap(model, hand) <= 1e-10


def test_alternating_steps_are_rounds_of_their_own() -> None:
    model = reference.MLP().module()
    optimizers = muon_and_adamw(model)
    sharp = steppe.LookSAM(model, optimizers, k=2)
    ascended = []
    for t in range(6):
        sharp.backward(lambda b: reference.MLP.torch_loss(model, b), reference.MLP().torch_batch(t))
        ascended.append(sharp.last.ascended)
        optimizers[t % 2].step()
        model.zero_grad()
    assert sharp.step == 6 and ascended == [True, False] * 3


def test_the_closure_adapter_steps_saves_and_loads_all_of_them() -> None:
    case = next(c for c in ALL if c.method == "look_sam")

    def closure_of(model: nn.Module, optimizer: SharpOptimizer, t: int) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = reference.MLP.torch_loss(model, reference.MLP().torch_batch(t))
            loss.backward()
            return loss

        return closure

    model, hand, again = (reference.MLP().module() for _ in range(3))
    optimizer = SharpOptimizer(recipe(case, model, muon_and_adamw(model)))
    for t in range(STEPS):
        if t == 5:
            again.load_state_dict(model.state_dict())
            state = copy.deepcopy(optimizer.state_dict())
        optimizer.step(closure_of(model, optimizer, t))
    resumed = SharpOptimizer(recipe(case, again, muon_and_adamw(again)))
    resumed.load_state_dict(state)
    for t in range(5, STEPS):
        resumed.step(closure_of(again, resumed, t))
    theirs = muon_and_adamw(hand)
    by_hand(case, hand, lambda: step(theirs), theirs)
    assert gap(model, hand) <= 1e-10 and gap(model, again) == 0
    resumed.step(closure_of(again, resumed, STEPS))
    scheduler = torch.optim.lr_scheduler.StepLR(resumed, 1, 0.5)
    scheduler.step()
    assert [g["lr"] for o in resumed.sharp.optimizer for g in o.param_groups] == [0.01, 0.005]


def test_what_is_no_list_of_optimizers_is_refused() -> None:
    model = reference.MLP().module()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for given in ([], (), [sgd, None], [sgd.param_groups], [[sgd]]):
        with pytest.raises(TypeError, match=r"optimizer.*expected.*torch.optim.Optimizer"):
            steppe.SAM(model, given)  # type: ignore[arg-type]
    assert steppe.SAM(model, [sgd]).step == 0


def test_no_step_of_any_while_perturbed() -> None:
    model = reference.MLP().module()
    optimizers = muon_and_adamw(model)
    sharp = steppe.SAM(model, optimizers)
    reference.MLP.torch_loss(model, reference.MLP().torch_batch(0)).backward()
    assert sharp.ascend()
    reference.MLP.torch_loss(model, reference.MLP().torch_batch(0)).backward()
    for optimizer in optimizers:
        for call in (optimizer.step, optimizer.state_dict):
            with pytest.raises(RuntimeError, match="while the weights are perturbed"):
                call()
    sharp.restore()
