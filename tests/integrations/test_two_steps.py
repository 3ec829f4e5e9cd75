"""first_step and second_step, for loops written for davda54/sam."""

from __future__ import annotations

import pytest
from tests.integrations.closures import loss_of, plain, wrapped
from tests.loops.shared import STEPS, copies, equal, unchanged

WAYS = ("sam", "grst", "look_sam", "gsam", "wsam", "fsam", "aesam", "msam", "s2_sam")  # one method for each way to step
CALLED = [(name, True) for name in WAYS] + [(name, False) for name in ("grst", "look_sam", "wsam", "aesam")]


@pytest.mark.parametrize(("name", "asked"), CALLED, ids=lambda x: {True: "asked", False: "blindly"}.get(x, x))
def test_first_and_second_step_are_the_plain_loop(name: str, asked: bool) -> None:
    """The loop of davda54/sam; run blindly, the second pass of a step without an ascent changes nothing."""
    model, optimizer = wrapped(name)
    passes = 0
    for t in range(STEPS):
        loss_of(model, t).backward()
        passes += 1
        if optimizer.first_step(zero_grad=True) or not asked:
            loss_of(model, t).backward()
            passes += 1
        optimizer.second_step(zero_grad=True)
    free = plain(name)
    assert unchanged(model, copies(free[0])) and equal(optimizer.sharp.memory, free[2].memory)
    assert all(p.grad is None for p in model.parameters()) and optimizer.sharp.step == STEPS
    assert name not in ("look_sam", "grst") or (passes < 2 * STEPS) is asked


@pytest.mark.parametrize("zero_grad", [True, False])
def test_a_zero_grad_of_ones_own_between_the_steps(zero_grad: bool) -> None:
    model, optimizer = wrapped("look_sam")
    for t in range(STEPS):
        loss_of(model, t).backward()
        optimizer.first_step()
        if zero_grad:
            optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.second_step()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.zero_grad()
    assert unchanged(model, copies(plain("look_sam")[0]))


def test_a_plain_step_after_a_first_step_that_did_not_ascend() -> None:
    model, optimizer = wrapped("look_sam")
    for t in range(STEPS):
        loss_of(model, t).backward()
        if optimizer.first_step():
            loss_of(model, t).backward()
            optimizer.second_step(zero_grad=True)
        else:
            optimizer.step()
            optimizer.zero_grad()
    assert unchanged(model, copies(plain("look_sam")[0]))


def test_steps_out_of_order_are_refused() -> None:
    model, optimizer = wrapped("sam")
    with pytest.raises(RuntimeError, match="nothing is perturbed"):
        optimizer.second_step()
    loss_of(model, 0).backward()
    before = copies(model)
    optimizer.first_step()
    for call in (optimizer.step, optimizer.state_dict, optimizer.first_step, model.state_dict):
        with pytest.raises(RuntimeError, match=r"while the weights are perturbed: call restore\(\) first"):
            call()
    optimizer.sharp.restore()
    assert unchanged(model, before)
