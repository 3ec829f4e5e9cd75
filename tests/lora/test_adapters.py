"""Adapters that come and go under a method: followed, or refused in one sentence at the next pass or step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.problems import same
from torch import nn

import steppe

peft = pytest.importorskip("peft")
from tests.lora.peft_models import BATCH, TARGETS, away_from_zero, llama, loss_of, tokens  # noqa: E402

MAKE: dict[str, Any] = {
    "bar": lambda m, o: steppe.BAR(m, o, mu=0.5, total_steps=9),
    "flat": lambda m, o: steppe.FlatLoRA(m, o, sigma=0.3, total_steps=9),
    "bi": lambda m, o: steppe.BiLoRA(m, o, rho=0.5, rule="sgd"),
}


def two(targets: list[str] = TARGETS) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model with two adapters, the first of which is active, and an optimizer of both."""
    model = llama()
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=targets))
    model.to(torch.float64)
    away_from_zero(model)
    model.train()
    return model, torch.optim.SGD([p for n, p in model.named_parameters() if "lora_" in n], lr=0.1)


def run(model: nn.Module, optimizer: torch.optim.Optimizer, sharp: Any, start: int, stop: int) -> None:
    for t, batch in enumerate(tokens(stop)):
        if t >= start:
            sharp.backward(lambda b: loss_of(model, b), batch)
            optimizer.step()
            optimizer.zero_grad()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("name", ["bar", "flat"])
@pytest.mark.parametrize("targets", [TARGETS, ["v_proj", "up_proj"]], ids=["same", "others"])
def test_a_switch_is_followed(name: str, targets: list[str]) -> None:
    """As one that is built after the switch and goes on at the same step."""
    model, optimizer = two(targets)
    sharp = MAKE[name](model, optimizer)
    run(model, optimizer, sharp, 0, 2)
    twin, base = two(targets)
    twin.load_state_dict(model.state_dict())
    model.set_adapter("second")
    run(model, optimizer, sharp, 2, 5)

    twin.set_adapter("second")
    fresh = MAKE[name](twin, base)
    fresh.load_state_dict(fresh.state_dict() | {"step": 2})
    run(twin, base, fresh, 2, 5)
    assert sharp.step == fresh.step == 5 and same(weights(model), weights(twin))
    assert sharp.state_dict() == fresh.state_dict()

    still, other = two(targets)  # nothing at all would be this
    still.load_state_dict(model.state_dict())
    still.set_adapter("second")
    before = weights(model)
    run(model, optimizer, sharp, 5, 6)
    for batch in list(tokens(6))[5:]:
        loss_of(still, batch).backward()
        other.step()
    assert not same(weights(model), weights(still)) and not same(weights(model), before)


def test_an_adapter_that_is_added_beside_is_followed() -> None:
    model = llama()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    bar, flat = MAKE["bar"](model, optimizer), MAKE["flat"](model, optimizer)
    assert len(bar) == len(flat.layers) == 3
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"]))
    model.base_model.set_adapter(["default", "second"])
    model.to(torch.float64)
    new = [p for n, p in model.named_parameters() if "second" in n]
    for p in new:
        p.requires_grad_()
    optimizer.add_param_group({"params": new})
    run(model, optimizer, flat, 0, 1)
    assert len(bar) == 5 and len(flat.layers) == 4
    assert {p.name.split(".")[-1] for p in bar.pairs} == {"default", "second"}
    model.base_model.set_adapter("default")
    model.delete_adapter("second")
    run(model, optimizer, flat, 1, 2)
    assert len(bar) == len(flat.layers) == 3 and bar.step == flat.step == 2


def test_bi_lora_refuses_a_switch_and_a_new_one_takes_its_place() -> None:
    model, optimizer = two()
    bi = MAKE["bi"](model, optimizer)
    run(model, optimizer, bi, 0, 2)
    model.set_adapter("second")
    loss_of(model).backward()
    for call in (optimizer.step, lambda: bi.backward(lambda: loss_of(model))):
        with pytest.raises(RuntimeError, match="adapters were added, removed or switched .*, or a new"):
            call()
    fresh = MAKE["bi"](model, optimizer)
    assert bi._steps is None and [a.shape[0] for a, _ in fresh.auxiliary] == [3, 3, 3]
    run(model, optimizer, fresh, 2, 4)
    assert fresh.step == 2 and bi.step == 2


@pytest.mark.parametrize("name", MAKE)
def test_an_adapter_that_the_optimizer_lacks_is_refused_at_the_step(name: str) -> None:
    model = llama()
    model.add_adapter("second", peft.LoraConfig(r=3, target_modules=TARGETS))
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "default" in n], lr=0.1)
    sharp = MAKE[name](model, optimizer)
    model.set_adapter("second")
    with pytest.raises(ValueError, match=r"in this optimizer|none that this optimizer trains"):
        optimizer.step()
    model.set_adapter("default")
    run(model, optimizer, sharp, 0, 1)
    assert sharp.step == 1


@pytest.mark.parametrize("name", ["flat", "bi"])
def test_a_reference_adapter_in_between_is_seen_as_it_is(name: str) -> None:
    """A model beside which one trains (DPO): switched to within a step, and back."""
    model = llama()
    model.add_adapter("reference", peft.LoraConfig(r=2, target_modules=TARGETS))
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "default" in n], lr=0.1)
    sharp = MAKE[name](model, optimizer)
    run(model, optimizer, sharp, 0, 3)
    model.set_adapter("reference")
    with torch.no_grad():
        seen = loss_of(model)
        plain = copy.deepcopy(model)
    assert torch.equal(seen, loss_of(plain).detach())
    model.set_adapter("default")
    assert not torch.equal(loss_of(model).detach(), loss_of(copy.deepcopy(model)).detach())
    run(model, optimizer, sharp, 3, 4)
    assert sharp.step == 4


@pytest.mark.parametrize("name", MAKE)
def test_merged_adapters_are_refused_until_they_are_unmerged(name: str) -> None:
    model = llama()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sharp = MAKE[name](model, optimizer)
    run(model, optimizer, sharp, 0, 2)
    model.merge_adapter()
    with torch.no_grad():  # to look at it is nobody's business
        assert torch.isfinite(loss_of(model))
    for call in (optimizer.step, lambda: sharp.backward(lambda: loss_of(model))):
        with pytest.raises(RuntimeError, match=r"q_proj are merged into its base.*unmerge_adapter\(\) before"):
            call()
    model.unmerge_adapter()
    run(model, optimizer, sharp, 2, 3)
    assert sharp.step == 3


@pytest.mark.parametrize("name", MAKE)
def test_a_model_that_has_lost_its_adapters_is_refused(name: str) -> None:
    model = llama()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    MAKE[name](model, optimizer)
    model.merge_and_unload()
    with pytest.raises(ValueError, match="the model holds no LoRA layer"):
        optimizer.step()
    assert torch.isfinite(loss_of(model, BATCH))
