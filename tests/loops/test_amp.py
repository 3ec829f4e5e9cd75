"""Mixed precision: GradScaler with its skipped steps and changing scale, fp16 and bf16 autocast."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import reference
from tests.loops.faults import Overflow
from tests.loops.shared import (
    LOOP_METHODS,
    MECHANISMS,
    STEPS,
    Built,
    OnTorch,
    Record,
    Weights,
    batch_of,
    build,
    by_hand,
    copies,
    equal,
    gap,
    loss_of,
    recipe_of,
    table,
    weights,
)
from torch import Tensor, nn
from torch.amp import GradScaler

import steppe

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SCALE = 2.0**12
NEVER = 10**6  # growth interval
Spoil = Callable[[Tensor], Tensor]


def scaled(name: str, built: Built, scaler: GradScaler, t: int, spoil: Spoil = lambda loss: loss) -> Tensor:
    """The line of the README: only `backward=` is new."""
    model, _, sharp = built
    f = loss_of(model, name)
    return sharp.backward(lambda b: spoil(f(b)), batch_of(t, F32), backward=lambda loss: scaler.scale(loss).backward())


def finish(built: Built, scaler: GradScaler, set_to_none: bool = True) -> None:
    scaler.step(built[1])
    scaler.update()
    built[1].zero_grad(set_to_none)


def scaler_of(scale: float = SCALE, growth: int = NEVER) -> GradScaler:
    return GradScaler("cpu", init_scale=scale, growth_interval=growth)


@functools.cache
def unscaled(name: str, steps: int = STEPS) -> Built:
    """The same steps without a scaler; looked at, and never trained further."""
    built = build(name, F32)
    for t in range(steps):
        built[2].backward(loss_of(built[0], name), batch_of(t, F32))
        built[1].step()
        built[1].zero_grad()
    return built


def state(built: Built) -> dict[str, Any]:
    model, optimizer, sharp = built
    return copy.deepcopy({"weights": copies(model), "optimizer": optimizer.state_dict(), "sharp": sharp.state_dict()})


ONE_PASS = ("ahead of the pass", "ahead by its own gradient")
PASSES = [(name, number) for name in MECHANISMS for number in (1, 2) if number == 1 or name not in ONE_PASS]


@pytest.mark.parametrize(("name", "unscale"), [("replace", False), *((name, True) for name in MECHANISMS)])
def test_a_scale_that_grows_in_mid_cycle_changes_nothing(name: str, unscale: bool) -> None:
    """Scales are powers of two, so not one bit; what a method remembers does not stay in an old scale."""
    built, scaler = build(name, F32), scaler_of(growth=3)
    for t in range(STEPS):
        scaled(name, built, scaler, t)
        if unscale:
            scaler.unscale_(built[1])
        finish(built, scaler)
    free = unscaled(name)
    assert scaler.get_scale() == SCALE * 2**3
    assert equal(copies(built[0]), copies(free[0])) and equal(built[1].state_dict(), free[1].state_dict())
    assert built[2].step == STEPS


LOOK = ("hardest samples", 2)  # a forward pass that only compares losses: nothing of it reaches a gradient
SKIPS = [*((name, (number,), True) for name, number in PASSES if (name, number) != LOOK)]
SKIPS += [("replace", (1, 2), True), ("reuse", (1, 2), False), ("reuse", (2,), False), ("hardest samples", (3,), False)]


SKIPPED = 6  # steps of which every one is skipped once: two refreshes of LookSAM, both draws of G-RST


@pytest.mark.parametrize(("name", "bad", "set_to_none"), SKIPS)
def test_a_skipped_step_changes_nothing(name: str, bad: tuple[int, ...], set_to_none: bool) -> None:
    """Every step overflows once and is tried again at half the scale: as if the first try had never been."""
    built, scaler, skipped = build(name, F32), scaler_of(2.0**16), 0
    for t in range(SKIPPED):
        before, spoil = state(built), Overflow(*bad)
        scaled(name, built, scaler, t, spoil)
        finish(built, scaler, set_to_none)
        if spoil.hit:
            skipped += 1
            assert equal(state(built), before)
            scaled(name, built, scaler, t)
            finish(built, scaler, set_to_none)
        assert built[2].step == t + 1
    free = unscaled(name, SKIPPED)
    assert skipped >= 2
    assert scaler.get_scale() == 2.0 ** (16 - skipped)
    assert equal(copies(built[0]), copies(free[0])) and equal(built[1].state_dict(), free[1].state_dict())


FEW = [(name, number) for name, number in PASSES if name in ("replace", "reuse", "ahead of the pass")]


@pytest.mark.parametrize(("name", "bad"), FEW)
def test_infinity_in_a_single_gradient_skips_the_step_too(name: str, bad: int) -> None:
    built, scaler, passes = build(name, F32), scaler_of(), 0
    parameter = built[0].get_parameter("ln.bias")

    def spoil(grad: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return grad * float("inf") if passes == bad else grad

    handle, before = parameter.register_hook(spoil), state(built)
    scaled(name, built, scaler, 0)
    handle.remove()
    finish(built, scaler)
    assert equal(state(built), before) is (passes >= bad)


def fused(name: str, kind: type[torch.optim.Optimizer], device: str = "cpu") -> Built:
    model = build(name, F32, device)[0]
    optimizer = kind(model.parameters(), lr=0.01, fused=True)  # type: ignore[call-arg]
    method, settings = recipe_of(name)
    return model, optimizer, steppe.methods.get(method).recipe(model, optimizer, **settings)


SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW
# What a step leaves behind: nothing, a pull, a correction, a direction, the optimizer's momentum, its gradient.
LEAVES = ("replace", "reuse", "decoupled", "remembered direction", "ahead of the pass", "ahead by its own gradient")
FUSED = [(name, False, ADAMW) for name in LEAVES]
FUSED += [("replace", False, SGD), ("reuse", False, SGD), ("reuse", True, SGD)]


@pytest.mark.parametrize(("name", "unscale", "kind"), FUSED)
def test_a_fused_optimizer_that_skips_by_itself(name: str, unscale: bool, kind: type[torch.optim.Optimizer]) -> None:
    """GradScaler calls its step after an overflow too, and leaves unscaling to the kernel."""
    built, free = fused(name, kind), fused(name, kind)
    scaler = scaler_of(2.0**16)
    for t in range(SKIPPED):
        for spoil in (Overflow(1), Overflow()):
            weights_before, sharp_before = copies(built[0]), state(built)["sharp"]
            scaled(name, built, scaler, t, spoil)
            if unscale:
                scaler.unscale_(built[1])
            finish(built, scaler)
            assert equal(copies(built[0]), weights_before) is equal(state(built)["sharp"], sharp_before) is spoil.hit
        free[2].backward(loss_of(free[0], name), batch_of(t, F32))
        free[1].step()
        free[1].zero_grad()
    assert equal(copies(built[0]), copies(free[0])) and built[2].step == SKIPPED


@pytest.mark.parametrize("name", ["replace", "reuse", "surrogate gap", "decoupled", "remembered direction"])
def test_accumulation_with_a_scaler(name: str) -> None:
    """Micro-batches exactly, at another scale at each step."""
    results = []
    for scales in (2.0**10, 2.0**12, 2.0**7, 2.0**9, 2.0**11), (1.0,) * 5:
        model, optimizer, sharp = built = build(name, F32)
        for t, scale in enumerate(scales):
            scaler, (x, y) = scaler_of(scale), batch_of(t, F32)
            sharp.backward(
                lambda b, m=model: loss_of(m, name)(b) / 4,
                micro_batches=list(zip(x.split(4), y.split(4), strict=True)),
                backward=lambda loss, s=scaler: s.scale(loss).backward(),
            )
            finish(built, scaler)
        results.append(copies(model))
    assert equal(*results)


LIMIT = 0.3


def clipped(method: Callable[..., Weights]) -> Callable[..., Weights]:
    def step(grad: Any, w: Weights, t: int, memory: dict[str, Any], **settings: Any) -> Weights:
        d = method(grad, w, t, memory, **settings)
        length = float(sum((g**2).sum() for g in d.values()) ** 0.5)
        return {k: g * min(1.0, LIMIT / (length + 1e-6)) for k, g in d.items()}

    return step


# One weight that rounds to the other neighbour in the forward pass (2^-11 of it in fp16, 2^-8 in bf16, as fp32 and
# float64 perturbations differ in the last bit) changes a gradient by about as much: lr 0.1, momentum 0.9 and ten
# steps make less than 1e-3 of it. The base itself ends more than 1e-2 away (asserted).
FLIPS = 1e-3


def far(path: list[Weights], other: list[Weights]) -> float:
    return max(gap(a, b) for a, b in zip(path, other, strict=True))


def under_autocast(name: str, dtype: torch.dtype, device: str = "cpu") -> list[Weights]:
    """The loop with autocast and, for fp16, a scaler that is unscaled to clip."""
    model, optimizer, sharp = build(name, F32, device)
    scaler = GradScaler(device, init_scale=2.0**10, enabled=dtype is F16)
    seen: set[torch.dtype] = set()
    model.get_submodule("fc1").register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    path = []
    for t in range(STEPS):

        def closure(t: int = t) -> Tensor:
            with torch.autocast(device, dtype=dtype):
                return loss_of(model)(batch_of(t, F32, device))

        sharp.backward(closure, backward=lambda loss: scaler.scale(loss).backward())
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        path.append(weights(model))
    assert seen == {dtype} and sharp.step == STEPS
    return path


def equals_the_slow_loop(name: str, dtype: torch.dtype, device: str = "cpu") -> None:
    problem = OnTorch(dtype, 2.0**10 if dtype is F16 else 1.0, device)
    expected = by_hand(name, problem, clipped(reference.METHODS[name]))
    base = by_hand(name, problem, clipped(lambda grad, w, t, memory, **settings: grad(w)))
    path = under_autocast(name, dtype, device)
    assert far(path, expected) < FLIPS and far(path, base) > 10 * FLIPS


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_fp16_autocast_with_a_scaler_and_clipping(name: str, record_property: Record) -> None:
    table(record_property, "fp16 GradScaler", name)
    equals_the_slow_loop(name, F16)


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_bf16_autocast(name: str, record_property: Record) -> None:
    table(record_property, "bf16 autocast", name)
    equals_the_slow_loop(name, BF16)


@pytest.mark.parametrize("name", [name for name in MECHANISMS if not name.startswith(("few", "hardest", "selected"))])
def test_phases_with_a_scaler_that_skips_and_grows(name: str) -> None:
    """As in a loop that somebody else owns; only the scale has to be told."""
    model, optimizer, sharp = built = build(name, F32)
    scaler = scaler_of(2.0**16, growth=3)
    for t in range(STEPS):
        for factor in (float("inf"), 1.0) if t % 3 == 1 else (1.0,):
            before, batch = state(built), batch_of(t, F32)
            scaler.scale(loss_of(model)(batch) * factor).backward()
            if sharp.ascend(scale=scaler.get_scale()):
                scaler.scale(loss_of(model)(batch) * factor).backward()
                sharp.restore()
            finish(built, scaler)
            assert equal(state(built), before) is (factor != 1)
    assert equal(copies(model), copies(unscaled(name)[0])) and optimizer is sharp.optimizer


DOCS = Path(__file__).parents[2] / "docs" / "loops" / "amp.md"


@pytest.mark.parametrize("block", re.findall(r"```diff\n(.*?)```", DOCS.read_text(), re.DOTALL), ids=["fp16", "bf16"])
def test_the_code_of_the_page_trains(block: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    names: dict[str, Any] = {
        "torch": torch, "steppe": steppe, "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(), "loader": [batch_of(t, F32) for t in range(3)], "device": "cpu",
    }  # fmt: skip
    exec("\n".join(line[2:] for line in block.splitlines() if not line.startswith("-")), names)  # noqa: S102
    assert names["sharp"].step == 3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F16, BF16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", LOOP_METHODS)
def test_autocast_on_cuda(name: str, dtype: torch.dtype, record_property: Record) -> None:
    table(record_property, "fp16 GradScaler" if dtype is F16 else "bf16 autocast", name)
    equals_the_slow_loop(name, dtype, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("one_kernel", [False, True])
@pytest.mark.parametrize("name", [n for n in LOOP_METHODS if n != "adasam"])
def test_a_real_overflow_on_cuda(name: str, one_kernel: bool, record_property: Record) -> None:
    """fp16 activations' gradients overflow at a scale of 2^40, until the scaler has come down to one that fits.

    In one kernel AdamW: after an overflow in its first step torch's fused SGD steps with a momentum nobody has written.
    """
    table(record_property, "fp16 GradScaler", name)
    model, optimizer, sharp = fused(name, ADAMW, "cuda") if one_kernel else build(name, F32, "cuda")
    scaler, start, tries = GradScaler("cuda", init_scale=2.0**40), copies(model), 0
    batch = batch_of(0, F32, "cuda")

    def closure() -> Tensor:
        with torch.autocast("cuda", dtype=F16):
            return loss_of(model)(batch)

    while sharp.step == 0 and tries < 40:
        assert equal(copies(model), start) and sharp.memory == {}
        sharp.backward(closure, backward=lambda loss: scaler.scale(loss).backward())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        tries += 1
    assert tries > 2 and sharp.step == 1 and all(p.isfinite().all() for p in model.parameters())
