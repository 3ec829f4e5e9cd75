"""Directions known before any pass: accumulation, hosts and phases, what is remembered, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.directions_ahead import ahead, begun, each
from tests.problems import BATCH, batches, close, everything, grads, loss_of, make, net, same, train
from torch import Tensor, nn

import steppe
from steppe.integrations.closure import SharpOptimizer

kept_here = pytest.mark.parametrize("name", ["average", "previous"])

# With accumulation, hosts and phases


@each
def test_micro_batches_and_one_backward_for_each_are_the_same_sum(name: str) -> None:
    """The perturbation does not depend on the data: exact accumulation and m-sharpness are one."""
    results = []
    for how in ("whole", "exact", "each"):
        model, _, sharp, _ = begun(name)
        model.norm.eval()
        parts = list(zip(BATCH[0].split(2), BATCH[1].split(2), strict=True))
        share = lambda b, m=model: loss_of(m)(b) / 4  # noqa: E731
        if how == "whole":
            sharp.backward(loss_of(model), BATCH)
        elif how == "exact":
            sharp.backward(share, micro_batches=parts)
        else:
            for part in parts:
                sharp.backward(share, part)
        results.append(grads(model))
    close(results[0], results[1])
    close(results[0], results[2])


@each
def test_phases_before_the_forward_cost_one_pass(name: str) -> None:
    model, _, sharp, _ = begun(name)
    twin, _, other, _ = begun(name)
    other.backward(loss_of(twin), BATCH)
    assert sharp.ascend()
    loss_of(model)(BATCH).backward()
    sharp.restore()
    close(grads(model), grads(twin), rtol=0, atol=0)
    assert same(everything(model), everything(twin))


@each
def test_phases_after_the_backward_run_as_ever(name: str) -> None:
    model, _, sharp, _ = begun(name)
    twin, _, other, _ = begun(name)
    other.backward(loss_of(twin), BATCH)
    sharp.mark()
    loss_of(model)(BATCH).backward()
    assert sharp.ascend()
    loss_of(model)(BATCH).backward()
    sharp.restore()
    close(grads(model), grads(twin), rtol=0, atol=0)


@pytest.mark.parametrize("parts", [{"combine": steppe.Mix(0.5)}, {"schedule": steppe.AboveNorm(total_steps=9)}])
def test_phases_before_the_forward_are_refused_where_the_gradient_is_read(parts: dict[str, Any]) -> None:
    model, _, sharp, _ = begun("previous", **parts)
    with pytest.raises(RuntimeError, match="ascend\\(\\) was called before the forward pass.* call it after"):
        sharp.ascend()
    loss_of(model)(BATCH).backward()
    sharp.mark()
    if sharp.ascend():
        loss_of(model)(BATCH).backward()
        sharp.restore()


@each
@pytest.mark.parametrize("way", ["adapter", "closure in the step"])
def test_an_optimizer_that_is_handed_a_closure(name: str, way: str) -> None:
    """There the gradient is made within the step, after the hook that comes before it."""
    model, plain = net(), net()
    optimizer, sharp = make(model, ascent=ahead(name))
    host = SharpOptimizer(sharp)
    torch.manual_seed(7)
    for batch in batches(6):

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            if way == "adapter":
                loss = loss_of(model)(batch)
                loss.backward()
                return loss
            return sharp.backward(loss_of(model), batch)

        (host if way == "adapter" else optimizer).step(closure)
    expected = train(plain, *make(plain, ascent=ahead(name)), 6)
    assert same(everything(model), expected) and sharp.step == 6


# Memory


def fused(name: str, **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]:
    model = net(torch.float32, dropout=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **settings)
    return model, optimizer, steppe.SharpnessAware(model, optimizer, ascent=ahead(name))


@kept_here
@pytest.mark.parametrize("inside", [False, True])
def test_memory_is_free_of_the_loss_scale(name: str, inside: bool) -> None:
    """Unscaled before the step, or by the kernel within it (as GradScaler tells a fused optimizer)."""
    memories = []
    for scale in (1.0, 1024.0):
        model, optimizer, sharp = fused(name, lr=0.0)
        for batch in batches(3, torch.float32):
            sharp.backward(loss_of(model), batch, backward=lambda loss, s=scale: (loss * s).backward())
            if inside:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
            for p in model.parameters():
                if p.grad is not None and not inside:
                    p.grad /= scale
            optimizer.step()
            optimizer.zero_grad()
        memories.append(next(iter(sharp.memory["ascent"].values())))
    assert memories[0].keys() == memories[1].keys() and any(m.any() for m in memories[0].values())
    assert same(*memories)


@kept_here
def test_a_step_that_never_happens_leaves_the_older_memory(name: str) -> None:
    model, optimizer, sharp = fused(name)
    batch = next(batches(1, torch.float32))
    sharp.backward(loss_of(model), batch)
    optimizer.step()
    optimizer.zero_grad()
    kept = sharp.memory
    assert kept and sharp.step == 1
    sharp.backward(lambda: loss_of(model)(batch) * float("inf"))
    optimizer.zero_grad()  # a GradScaler's way of skipping
    assert sharp.memory is kept
    sharp.backward(lambda: loss_of(model)(batch) * float("inf"))
    optimizer.found_inf = torch.tensor(1.0)  # a fused optimizer's
    optimizer.step()
    assert sharp.memory is kept and sharp.step == 1


def test_the_average_by_hand_and_previous_is_what_the_step_took() -> None:
    model = net(dropout=0)
    optimizer, sharp = make(model, ascent=ahead("average"))
    old = None
    for batch in batches(4):
        sharp.backward(loss_of(model), batch)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        g = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        old = {n: 0.2 * x + 0.8 * (old[n] if old else 0) for n, x in g.items()}
        optimizer.step()
        optimizer.zero_grad()
        close(sharp.memory["ascent"]["average"], old)
    model, optimizer, sharp, last = begun("previous")
    close(sharp.memory["ascent"]["previous"], last, rtol=0, atol=0)


def test_the_average_keeps_what_a_step_without_a_gradient_does_not_move() -> None:
    model = net(dropout=0)
    optimizer, sharp = make(model, ascent=ahead("average"))
    first, second = batches(2)
    for batch, rare in ((first, True), (second, False), (first, True)):
        held = sharp.memory.get("ascent", {}).get("average", {})
        sharp.backward(lambda b=batch, r=rare: nn.functional.cross_entropy(model(b[0], r), b[1]))
        grad = model.rare.weight.grad
        optimizer.step()
        optimizer.zero_grad()
        kept = sharp.memory["ascent"]["average"]["rare.weight"]
        if not rare:
            assert grad is None and torch.equal(kept, held["rare.weight"])
        elif held:
            torch.testing.assert_close(kept, 0.8 * held["rare.weight"] + 0.2 * grad, rtol=1e-12, atol=1e-14)


def test_momentum_of_the_optimizer_needs_no_memory_and_subsets_only_their_own() -> None:
    for name, where in (("momentum", None), ("average", "average"), ("previous", "previous")):
        model = net()
        optimizer, sharp = make(model, ascent=ahead(name, subset="norm"))
        train(model, optimizer, sharp, 3)
        assert sharp.last.ascended
        kept = sharp.memory["ascent"][where] if where else {}
        assert set(kept) == ({"norm.weight", "norm.bias"} if where else set())


@each
def test_resumed_equals_uninterrupted(name: str) -> None:
    model, optimizer, sharp, _ = begun(name)
    twin = net(dropout=0)
    other, again = make(twin, ascent=ahead(name))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    again.load_state_dict(copy.deepcopy(sharp.state_dict()))
    assert same(train(model, optimizer, sharp, 4), train(twin, other, again, 4))
    assert again.last.ascended and again.step == 5


# Refusals


class Plain(torch.optim.Optimizer):
    """A foreign optimizer without state, whose settings say nothing of momentum."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                if p.grad is not None:
                    p -= 0.1 * p.grad


NO_MOMENTUM: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "adagrad": lambda p: torch.optim.Adagrad(p),
}


@pytest.mark.parametrize("kind", NO_MOMENTUM)
def test_an_optimizer_without_momentum_is_refused_and_an_average_offered(kind: str) -> None:
    model = net()
    optimizer = NO_MOMENTUM[kind](model.parameters())
    with pytest.raises(ValueError, match=r"keeps no momentum here .*expected .*decay=0.9"):
        steppe.MSAM(model, optimizer)
    sharp = steppe.MSAM(model, optimizer, decay=0.9, rho=0.1)
    train(model, optimizer, sharp, 3)
    assert sharp.last.ascended


def test_a_foreign_optimizer_without_momentum_is_refused_once_it_has_stepped() -> None:
    model = net()
    optimizer = Plain(model.parameters())
    sharp = steppe.MSAM(model, optimizer)
    with pytest.raises(ValueError, match="Plain keeps no momentum here"):
        train(model, optimizer, sharp, 2)
    assert sharp.step == 1


def test_a_momentum_of_foreign_shape_is_not_taken() -> None:
    model = net()
    optimizer, sharp = make(model, ascent=ahead("momentum"))
    train(model, optimizer, sharp, 1)
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].flatten().to(torch.uint8)
    with pytest.raises(ValueError, match="keeps no momentum"):
        sharp.backward(loss_of(model), BATCH)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "sign 0": (lambda: steppe.Momentum(sign=0), "sign=0 was given; expected -1"),
    "sign True": (lambda: steppe.Momentum(sign=True), "sign=True was given"),
    "decay 1": (lambda: steppe.Momentum(decay=1.0), "below 1, as the average would never move"),
    "decay over 1": (lambda: steppe.Momentum(decay=1.5), "expected a number from 0 to 1"),
    "samples": (lambda: begun("previous", look=steppe.Look(2)), "needs no pass to find it"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_in_one_sentence(case: str) -> None:
    do, message = BAD[case]
    with pytest.raises(ValueError, match=message) as error:
        do()
    assert "\n" not in str(error.value)
