"""BAR, Flat-LoRA and Bi-LoRA ask where every method asks whether a step was real: the same answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.situations.standins import Chained, Lookahead, Twice, gap
from torch import nn
from torch.optim import Optimizer

import steppe

pytest.importorskip("peft")
from tests.lora.peft_models import llama, loss_of, tokens, trained  # noqa: E402

STEPS = 5
METHODS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "nbar": lambda m, o: steppe.BAR(m, o, mu=0.5, schedule="linear", total_steps=STEPS),
    "obar": lambda m, o: steppe.BAR(m, o, rule="obar", mu=0.5, schedule="cosine", total_steps=STEPS),
    "flat": lambda m, o: steppe.FlatLoRA(m, o, sigma=0.3, total_steps=STEPS),
    "bi": lambda m, o: steppe.BiLoRA(m, o, rho=0.5, rule="sgd"),
}


def sgd(params: Any, kind: type[Optimizer] = torch.optim.SGD, **more: Any) -> Optimizer:
    return kind(params, **({"lr": 0.1, "momentum": 0.9} | more))  # type: ignore[call-arg]


def go(make: Callable[[nn.Module, Any], Any], given: Callable[[nn.Module], Any], step: Callable[[Any], None],
       sign: float = 1.0) -> tuple[nn.Module, Any]:  # fmt: skip
    """A training with the method built on ``given``; ``step`` takes the steps."""
    model = llama()
    optimizer = given(model)
    method = make(model, optimizer)
    for batch in tokens(STEPS):
        (sign * loss_of(model, batch)).backward()
        step(optimizer)
        model.zero_grad()
    return model, method


def plain(optimizer: Optimizer) -> None:
    optimizer.step()


def each(optimizers: list[Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("name", METHODS)
def test_a_step_that_calls_its_parents_and_a_chain_are_one_step(name: str) -> None:
    expected, method = go(METHODS[name], lambda m: sgd(trained(m)), plain)
    assert method.step == STEPS
    for given in (lambda m: sgd(trained(m), Twice), lambda m: Chained(sgd(trained(m))), lambda m: [sgd(trained(m))]):
        model, method = go(METHODS[name], given, each if isinstance(given(expected), list) else plain)
        assert method.step == STEPS and gap(model, expected) == 0


@pytest.mark.parametrize("name", METHODS)
def test_lookahead_is_heard_beneath(name: str) -> None:
    """The method on the inner optimizer, with the slow step by hand in the loop, is the method on the wrapper."""
    slow: dict[Any, torch.Tensor] = {}
    count = 0

    def by_hand(optimizer: Optimizer) -> None:
        nonlocal count
        params = [p for g in optimizer.param_groups for p in g["params"]]
        if not slow:
            slow.update({p: start[i] for i, p in enumerate(params)})
        optimizer.step()
        count += 1
        if count % 3 == 0:
            with torch.no_grad():
                for p in params:
                    slow[p] += 0.5 * (p - slow[p])
                    p.copy_(slow[p])

    start = [p.detach().clone() for p in trained(llama())]
    expected, _ = go(METHODS[name], lambda m: sgd(trained(m)), by_hand)
    model, method = go(METHODS[name], lambda m: Lookahead(sgd(trained(m))), plain)
    assert method.step == STEPS and gap(model, expected) <= 1e-10


@pytest.mark.parametrize("name", METHODS)
def test_two_optimizers_are_one_round(name: str) -> None:
    """A layer's factors are in one of them, another layer's in the other: the same as one optimizer of all."""

    def two(model: nn.Module) -> list[Optimizer]:
        here = [p for n, p in model.named_parameters() if p.requires_grad and "q_proj" in n]
        there = [p for n, p in model.named_parameters() if p.requires_grad and "q_proj" not in n]
        return [sgd(here), sgd(there)]

    expected, _ = go(METHODS[name], lambda m: sgd(trained(m)), plain)
    model, method = go(METHODS[name], two, each)
    assert method.step == STEPS and gap(model, expected) <= 1e-10


@pytest.mark.parametrize("name", METHODS)
def test_climbing_minus_the_loss_is_descending_the_loss(name: str) -> None:
    expected, _ = go(METHODS[name], lambda m: sgd(trained(m)), plain)
    model, _ = go(METHODS[name], lambda m: sgd(trained(m), maximize=True), plain, sign=-1.0)
    assert gap(model, expected) <= 1e-10


def test_a_pair_in_two_optimizers_is_refused() -> None:
    model = llama()
    sides = [[p for n, p in model.named_parameters() if p.requires_grad and side in n] for side in ("lora_A", "lora_B")]
    with pytest.raises(ValueError, match=r"sides of pair .* in two of the optimizers.*expected"):
        steppe.BAR(model, [sgd(s) for s in sides], total_steps=3)


def test_no_rate_is_refused_where_it_is_read() -> None:
    model = llama()
    optimizer = sgd(trained(model))
    optimizer.param_groups[0]["lr"] = None
    for make in (METHODS["nbar"], METHODS["bi"]):
        with pytest.raises(ValueError, match=r"SGD has lr=None.*expected"):
            make(model, optimizer)
    steppe.BiLoRA(model, optimizer, lr=0.1)
    METHODS["flat"](model, optimizer)
