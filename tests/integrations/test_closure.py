"""The optimizer for hosts that want step(closure)."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.integrations.closures import closure_of, loss_of, plain, wrapped
from tests.loops.shared import (
    STEPS,
    batch_of,
    build,
    by_hand,
    copies,
    equal,
    gap,
    unchanged,
    weights,
)
from tests.problems import batches, everything, net, same
from tests.problems import loss_of as net_loss_of
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import steppe
from steppe.integrations.closure import SharpOptimizer

# step(closure)


# One method for each way to make a step.
WAYS = ("sam", "grst", "look_sam", "gsam", "wsam", "fsam", "aesam", "msam", "s2_sam")


@pytest.mark.parametrize("name", WAYS)
def test_step_with_a_closure_is_the_plain_loop(name: str) -> None:
    model, optimizer = wrapped(name)
    for t in range(STEPS):
        loss = optimizer.step(closure_of(model, optimizer, t))
        assert loss is not None and not loss.requires_grad and loss.shape == ()
    free = plain(name)
    assert unchanged(model, copies(free[0])) and equal(optimizer.sharp.memory, free[2].memory)
    assert gap(weights(model), by_hand(name)[-1]) <= 1e-12


def test_the_closure_runs_once_or_twice_and_its_first_loss_comes_back() -> None:
    model, optimizer = wrapped("look_sam")  # k = 4
    calls = []
    for t in range(STEPS):
        losses: list[Tensor] = []

        def closure(t: int = t, losses: list[Tensor] = losses) -> Tensor:
            losses.append(closure_of(model, optimizer, t)())
            return losses[-1]

        returned = optimizer.step(closure)
        assert returned is not None and returned.item() == losses[0].item()
        calls.append(len(losses))
    assert calls == [2, 1, 1, 1, 2, 1, 1, 1, 2, 1] and optimizer.sharp.step == STEPS


def test_under_no_grad_and_with_a_closure_that_returns_a_number() -> None:
    model, optimizer = wrapped("sam")
    for t in range(STEPS):
        closure = closure_of(model, optimizer, t)
        with torch.no_grad():
            optimizer.step(lambda closure=closure: closure().item() if t % 2 else closure().detach())
    assert unchanged(model, copies(plain("sam")[0]))


@pytest.mark.parametrize("clear", ["optimizer", "optimizer, zeros", "model", "nothing"])
def test_gradients_left_by_the_step_before(clear: str) -> None:
    """The closure clears, in any of torch's ways; one that cannot is fine as long as nothing is there."""
    model, optimizer = wrapped("gsam")
    clears: dict[str, Callable[[], None]] = {
        "optimizer": optimizer.zero_grad,
        "optimizer, zeros": lambda: optimizer.zero_grad(set_to_none=False),
        "model": model.zero_grad,
        "nothing": lambda: None,
    }

    def closure(t: int) -> Tensor:
        clears[clear]()
        loss = loss_of(model, t)
        loss.backward()
        return loss

    for t in range(STEPS):
        optimizer.step(lambda t=t: closure(t))
        if clear == "nothing":
            optimizer.zero_grad()
    assert unchanged(model, copies(plain("gsam")[0]))


def test_a_backward_outside_of_the_closure_is_refused() -> None:
    """The loop of davda54/sam, or a host that accumulates: g would be added to the sharpness-aware gradient."""
    model, optimizer = wrapped("sam")
    loss_of(model, 0).backward()
    before = copies(model)

    def closure() -> Tensor:
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="did not clear them: begin the closure with optimizer.zero_grad()"):
        optimizer.step(closure)
    assert unchanged(model, before) and optimizer.sharp.step == 0
    assert all(p.grad is None for p in model.parameters())
    optimizer.step(closure)
    assert optimizer.sharp.step == 1


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("name", ["look_sam", "gsam"])
def test_an_error_in_the_closure(name: str, failing: int) -> None:
    model, optimizer = wrapped(name)
    optimizer.step(closure_of(model, optimizer, 0))
    before, calls = copies(model), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise torch.OutOfMemoryError("out of memory")
        return closure_of(model, optimizer, 1)()

    try:
        optimizer.step(closure)
    except torch.OutOfMemoryError:
        assert unchanged(model, before) and optimizer.sharp.step == 1
        assert all(p.grad is None for p in model.parameters()), "cleared, as by the closure"
    else:
        assert calls < failing, "a step without a second pass"


def test_statistics_and_masks() -> None:
    """Batch norm and dropout: as in the plain loop, bit for bit."""
    results = []
    for adapter in (True, False):
        model = net()
        base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        sharp = steppe.LookSAM(model, base, rho=0.05, k=3)
        optimizer = SharpOptimizer(sharp)
        torch.manual_seed(5)
        for batch in batches(7):

            def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                optimizer.zero_grad()
                loss = net_loss_of(model)(batch)
                loss.backward()
                return loss

            if adapter:
                optimizer.step(closure)
            else:
                sharp.backward(net_loss_of(model), batch)
                base.step()
                base.zero_grad()
        results.append(everything(model))
    assert same(*results) and results[0]["norm.num_batches_tracked"] == 7


# step(None), and hosts


def test_step_without_a_closure_is_a_plain_step() -> None:
    model, optimizer = wrapped("sam")
    twin, base, _ = build("sam")
    loss_of(model, 0).backward()
    loss_of(twin, 0).backward()
    assert optimizer.step() is None
    base.step()
    assert unchanged(model, copies(twin))


def test_a_distributed_checkpoint_calls_step_none_and_changes_nothing() -> None:
    model, optimizer = wrapped("look_sam")
    before = copies(model)
    saved = get_optimizer_state_dict(model, optimizer)
    assert unchanged(model, before) and optimizer.sharp.step == 0
    optimizer.step(closure_of(model, optimizer, 0))
    moments = copy.deepcopy(optimizer.base_optimizer.state_dict()["state"])
    saved, position = copy.deepcopy(get_optimizer_state_dict(model, optimizer)), optimizer.sharp.state_dict()
    other_model, other = wrapped("look_sam")
    with pytest.warns(UserWarning, match="holds no 'sharp' entry"):
        set_optimizer_state_dict(other_model, other, saved)
    other.sharp.load_state_dict(position)
    assert equal(other.base_optimizer.state_dict()["state"], moments) and other.sharp.step == 1


def test_groups_state_and_defaults_are_those_of_the_base() -> None:
    model, optimizer = wrapped("sam")
    base = optimizer.base_optimizer
    assert isinstance(optimizer, torch.optim.Optimizer) and base is optimizer.sharp.optimizer
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    assert optimizer.defaults is base.defaults and "lr: 0.1" in repr(optimizer)
    extra = nn.Linear(2, 2, dtype=torch.float64)
    model.add_module("extra", extra)
    optimizer.add_param_group({"params": extra.parameters(), "lr": 0.5, "perturb": False})
    assert base.param_groups[1]["lr"] == 0.5 and base.param_groups[1]["momentum"] == 0.9
    optimizer.step(closure_of(model, optimizer, 0))
    base.load_state_dict(copy.deepcopy(base.state_dict()))
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("two_steps", [False, True])
@pytest.mark.parametrize("on_base", [False, True])
def test_learning_rate_schedulers(on_base: bool, two_steps: bool) -> None:
    model, optimizer = wrapped("asam")
    twin, base, sharp = build("asam")
    both = []
    for o in (optimizer.base_optimizer if on_base else optimizer, base):
        both.append(torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=STEPS))  # moves momentum as well
    for t in range(STEPS):
        if two_steps:
            loss_of(model, t).backward()
            optimizer.first_step(zero_grad=True)
            loss_of(model, t).backward()
            optimizer.second_step(zero_grad=True)
        else:
            optimizer.step(closure_of(model, optimizer, t))
        sharp.backward(lambda t=t: loss_of(twin, t))
        base.step()
        base.zero_grad()
        for scheduler in both:
            scheduler.step()
    assert unchanged(model, copies(twin)) and both[0].get_last_lr() == both[1].get_last_lr()


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_takes_it_as_an_optimizer(fused: bool, overflow: bool) -> None:
    """GradScaler has no closures: the gradient by sharp.backward, the step by the scaler."""
    model, _, _ = build("look_sam", torch.float32)
    base = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    optimizer = SharpOptimizer(steppe.LookSAM(model, base, k=2))
    scaler, before = torch.amp.GradScaler("cpu", init_scale=1024.0), copies(model)
    x, y = batch_of(0, torch.float32)
    factor = float("inf") if overflow else 1.0
    optimizer.sharp.backward(
        lambda: nn.functional.cross_entropy(model(x), y) * factor, backward=lambda loss: scaler.scale(loss).backward()
    )
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.sharp.step == (not overflow) and unchanged(model, before) is overflow
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: None)


def test_hooks_of_both_are_called_once() -> None:
    model, optimizer = wrapped("sam")
    seen: list[str] = []
    optimizer.register_step_post_hook(lambda *_: seen.append("outer"))
    optimizer.base_optimizer.register_step_post_hook(lambda *_: seen.append("inner"))
    optimizer.step(closure_of(model, optimizer, 0))
    assert seen == ["inner", "outer"]


# Checkpoints


@pytest.mark.parametrize("name", WAYS)
def test_resumed_equals_uninterrupted(name: str, at: int = 3) -> None:
    model, optimizer = wrapped(name)
    for t in range(at):
        optimizer.step(closure_of(model, optimizer, t))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model, optimizer = wrapped(name)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for t in range(at, STEPS):
        optimizer.step(closure_of(model, optimizer, t))
    assert unchanged(model, copies(plain(name)[0])) and optimizer.sharp.step == STEPS


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    model, optimizer = wrapped("look_sam")
    optimizer.step(closure_of(model, optimizer, 0))
    good, before = optimizer.state_dict(), copy.deepcopy(optimizer.state_dict())
    for t in (1, 2):
        optimizer.step(closure_of(model, optimizer, t))
    now = copy.deepcopy(optimizer.state_dict())
    for bad in (good | {"param_groups": []}, good | {"sharp": {}}):
        with pytest.raises(ValueError):
            optimizer.load_state_dict(bad)
        assert equal(optimizer.state_dict(), now)
    optimizer.load_state_dict(before)
    assert equal(optimizer.state_dict(), before)


def test_a_state_of_the_base_alone_is_taken_with_a_warning() -> None:
    model, optimizer = wrapped("look_sam")
    for t in (0, 1):
        optimizer.step(closure_of(model, optimizer, t))
    with pytest.warns(UserWarning, match="holds no 'sharp' entry"):
        optimizer.load_state_dict(optimizer.base_optimizer.state_dict())
    assert optimizer.sharp.step == 2


# Refusals


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_it_cannot_be_copied(way: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="cannot be copied or pickled, as it belongs to one model: save its state_dict"):
        way(wrapped("sam")[1])


def test_bad_arguments_are_refused_in_one_sentence() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="was given an SGD; expected a steppe object"):
        SharpOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="LBFGS needs a closure of its own"):
        SharpOptimizer(steppe.SAM(model, torch.optim.LBFGS(model.parameters())))
    optimizer = SharpOptimizer(steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1)))
    with pytest.raises(TypeError, match="returned NoneType; expected a tensor"):
        optimizer.step(lambda: None)
    with pytest.raises(ValueError, match="expected one element"):
        optimizer.step(lambda: torch.ones(2))
    few = SharpOptimizer(steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=2))
    with pytest.raises(TypeError, match="was given a closure; expected backward"):
        few.step(lambda: torch.ones(()))
