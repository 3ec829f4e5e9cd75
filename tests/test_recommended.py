"""The recommended default: its parts, its limits bit for bit, its passes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.problems import batches, loss_of, net, same

import steppe


def weights_after(make: Any, steps: int = 12) -> dict[str, torch.Tensor]:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp = make(model, optimizer)
    for batch in batches(steps):
        if sharp is None:
            loss_of(model)(batch).backward()
        else:
            sharp.backward(loss_of(model), batch)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach() for name, p in model.named_parameters()}


def test_it_is_sam_on_four_samples_with_batch_normalisation() -> None:
    parts = {"ascent": steppe.Ascent(0.4), "look": steppe.Look(4)}
    composed = weights_after(lambda m, o: steppe.SharpnessAware(m, o, **parts, seed=3))
    assert same(weights_after(lambda m, o: steppe.recommended(m, o, seed=3)), composed)
    deeper = torch.nn.Sequential(net())
    assert steppe.recommended(deeper, torch.optim.SGD(deeper.parameters(), lr=0.05)).look.samples == 4


def test_without_steps_that_ascend_it_is_the_base() -> None:
    assert same(weights_after(lambda m, o: steppe.recommended(m, o, p=0.0)), weights_after(lambda m, o: None))


def test_on_some_steps_it_is_rst_on_few_samples() -> None:
    some = weights_after(lambda m, o: steppe.recommended(m, o, p=0.25, seed=3))
    assert same(some, weights_after(lambda m, o: steppe.RST(m, o, rho=0.4, p=0.25, samples=4, seed=3)))
    assert not same(some, weights_after(lambda m, o: steppe.recommended(m, o)))


def test_the_loss_it_returns_is_the_look_s_and_the_second_is_the_whole_batch_s() -> None:
    model, seen = net(), []
    sharp = steppe.recommended(model, torch.optim.SGD(model.parameters(), lr=0.05))

    def noted(batch: Any) -> torch.Tensor:
        loss = loss_of(model)(batch)
        seen.append((len(batch[0]), loss.detach().clone()))
        return loss

    returned = sharp.backward(noted, next(iter(batches(1))))
    assert seen == [(4, returned), (8, sharp.last.perturbed_loss)] and returned != sharp.last.perturbed_loss


def test_it_costs_few_samples_on_the_steps_that_ascend() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sharp, seen = steppe.recommended(model, optimizer, p=0.25, seed=5), list[int]()

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]))  # a list only grows; a sum would be put back, as all that a hook binds is

    model.register_forward_pre_hook(hook)
    ascents = 0
    for batch in batches(40):
        sharp.backward(loss_of(model), batch)
        ascents += sharp.last.ascended
        optimizer.step()
        optimizer.zero_grad()
    assert ascents == sum(steppe.schedule.uniform(5, t) < 0.25 for t in range(40))
    assert sum(seen) == 40 * 8 + 4 * ascents


def test_without_batch_normalisation_it_is_a_share_of_the_batch() -> None:
    model = torch.nn.Linear(3, 2)
    sharp = steppe.recommended(model, torch.optim.SGD(model.parameters(), lr=0.05))
    assert sharp.look.samples == 0.04
    assert steppe.recommended(model, sharp.optimizer, samples=0.5).look.samples == 0.5


def test_a_closure_without_its_batch_is_refused_with_what_to_do() -> None:
    model = net()
    sharp = steppe.recommended(model, torch.optim.SGD(model.parameters(), lr=0.05))
    with pytest.raises(TypeError, match=r"expected backward\(loss_of, batch\)"):
        sharp.backward(lambda: loss_of(model)(next(batches(1))))


def test_a_ramp_is_the_curve_that_rises_over_its_share_of_the_training() -> None:
    curve = steppe.curves.Linear(0.0, 0.8, 5)
    by_hand = weights_after(lambda m, o: steppe.recommended(m, o, rho=curve))
    ramped = weights_after(lambda m, o: steppe.recommended(m, o, rho=0.8, ramp=0.24, total_steps=20))
    assert same(ramped, by_hand) and not same(ramped, weights_after(lambda m, o: steppe.recommended(m, o, rho=0.8)))
    model = net()
    sharp = steppe.recommended(model, torch.optim.SGD(model.parameters(), 0.1), rho=0.8, ramp=0.25, total_steps=20)
    assert [sharp.ascent.rho(t) for t in (0, 1, 5, 19)] == [0.0, pytest.approx(0.16), 0.8, 0.8]


def test_a_resumed_ramp_goes_on_where_it_stood() -> None:
    def built() -> tuple[torch.nn.Module, steppe.SharpnessAware]:
        optimizer = torch.optim.SGD((model := net()).parameters(), 0.05)
        return model, steppe.recommended(model, optimizer, rho=0.8, ramp=0.5, total_steps=10, measure=True)

    model, sharp = built()
    lengths = []
    for t, batch in enumerate(batches(7)):
        if t == 3:
            state, (model, sharp) = sharp.state_dict(), built()
            sharp.load_state_dict(state)
        sharp.backward(loss_of(model), batch)
        lengths.append(float(sharp.last.perturbation_norm or 0.0))
        sharp.optimizer.step()
        sharp.optimizer.zero_grad()
    assert lengths == pytest.approx([0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.8], rel=1e-5)


RAMPS: list[dict[str, Any]] = [
    {"ramp": 0.1}, {"ramp": 1.5, "total_steps": 10}, {"ramp": 0.1, "total_steps": 0.5},
    {"ramp": 0.1, "total_steps": 10, "rho": -1}, {"ramp": 0.1, "total_steps": 10, "rho": lambda t: 0.1},
]  # fmt: skip


BAD: list[dict[str, Any]] = [{"p": 2.0}, {"rho": -1}, {"samples": 0}, {"samples": 1.5}, {"p": float("nan")}]


@pytest.mark.parametrize("bad", [*BAD, *RAMPS])
def test_bad_settings_are_refused_in_one_sentence(bad: dict[str, Any]) -> None:
    model = net()
    with pytest.raises((TypeError, ValueError), match="expected") as error:
        steppe.recommended(model, torch.optim.SGD(model.parameters(), lr=0.05), **bad)
    assert "\n" not in str(error.value)
