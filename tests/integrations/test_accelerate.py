"""accelerate: `backward=accelerator.backward`, with the model and the optimizer as `accelerator.prepare` gives them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations import ranks
from tests.integrations.by_hand import LOOP_METHODS, Batch, base, micro_batches, sharpen, train
from tests.loops import distributed
from tests.problems import everything, net, same
from torch import nn

import steppe

accelerate = pytest.importorskip("accelerate")
from accelerate.state import AcceleratorState, GradientState, PartialState  # noqa: E402

Host = tuple[Any, nn.Module, Any, steppe.SharpnessAware]


@pytest.fixture(autouse=True)
def _fresh_state() -> Iterator[None]:
    """Accelerate's state is the process's: a Trainer of another test may have left some."""
    _reset()
    yield
    _reset()


def _reset() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def prepare(name: str, **settings: Any) -> Host:
    accelerator = accelerate.Accelerator(cpu=True, **settings)
    model = net(torch.float32)
    model, optimizer = accelerator.prepare(model, base(name, model))
    sharp = sharpen(name, model, optimizer)
    accelerator.register_for_checkpointing(sharp)
    return accelerator, model, optimizer, sharp


def run(host: Host, batches: list[Batch], clip: float = 0.0, start: int = 0) -> list[int]:
    """accelerate's own recipe of accumulation; the line of the backward is the one that differs."""
    accelerator, model, optimizer, sharp = host
    steps = []
    for i, (x, y) in enumerate(batches, start=start):
        torch.manual_seed(i)
        with accelerator.accumulate(model):
            sharp.backward(lambda: nn.functional.cross_entropy(model(x), y), backward=accelerator.backward)
            if clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
        steps.append(sharp.step)
    return steps


# Both ways for the method that remembers and reuses; the cheaper one for the others.
THREE_STEPS = [("look_sam", 4, "bf16"), *((name, 1, "fp32") for name in LOOP_METHODS)]


@pytest.mark.parametrize(("name", "accumulate", "kind"), THREE_STEPS)
def test_three_steps_equal_the_loop_by_hand(
    name: str, accumulate: int, kind: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("loop", "accelerate")
    record_property("method", name)
    batches = micro_batches(3 * accumulate)
    expected, by_hand, _ = train(name, batches, accumulate, kind)
    host = prepare(name, gradient_accumulation_steps=accumulate, mixed_precision="bf16" if kind == "bf16" else "no")
    counted = run(host, batches)
    assert same(everything(host[1]), everything(expected))
    assert counted == [(i + 1) // accumulate for i in range(3 * accumulate)], "only real steps count"
    assert host[3].last.ascended == by_hand.last.ascended


def test_clipping_happens_once_and_after_combining() -> None:
    batches = micro_batches(8)
    expected, _, _ = train("gsam", batches, 4, clip=0.1)
    host = prepare("gsam", gradient_accumulation_steps=4)
    run(host, batches, clip=0.1)
    assert same(everything(host[1]), everything(expected))


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_a_step_that_the_scaler_skips_moves_nothing(name: str) -> None:
    accelerator, model, optimizer, sharp = host = prepare(name)
    # accelerate has no fp16 without a GPU; this is what its prepare does with one.
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    host = (accelerator, model, type(optimizer)(optimizer.optimizer, scaler=accelerator.scaler), sharp)
    batches = micro_batches(4)
    before = [p.detach().clone() for p in model.parameters()]
    assert run(host, [(batches[0][0] * float("inf"), batches[0][1])]) == [0] and host[2].step_was_skipped
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert run(host, batches[1:], clip=0.5) == [1, 2, 3]


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_save_state_and_load_state_resume_bit_for_bit(name: str, tmp_path: Path) -> None:
    batches = micro_batches(6)
    whole = prepare(name)
    run(whole, batches)
    first = prepare(name)
    run(first, batches[:3])
    first[0].save_state(str(tmp_path))
    again = prepare(name)
    again[0].load_state(str(tmp_path))
    assert run(again, batches[3:], start=3) == [4, 5, 6]
    assert same(everything(again[1]), everything(whole[1]))


def test_autocast_around_the_call_does_not_hide_the_perturbation() -> None:
    x, y = micro_batches(1)[0]
    found = []
    for around in (False, True):
        accelerator, model, _, sharp = prepare("sam", mixed_precision="bf16")
        model.forward = type(model).forward.__get__(model)  # without accelerate's own autocast
        torch.manual_seed(0)

        def loss_of() -> torch.Tensor:
            with contextlib.nullcontext() if around else accelerator.autocast():
                return nn.functional.cross_entropy(model(x).float(), y)

        with accelerator.autocast() if around else contextlib.nullcontext():
            sharp.backward(loss_of)
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for inside, outside in zip(*found, strict=True):
        assert torch.equal(inside, outside)


def test_exact_accumulation_gives_the_micro_batches_together() -> None:
    host = prepare("sam", gradient_accumulation_steps=4)
    accelerator, model, optimizer, sharp = host
    model.eval()  # batch norm would see other batches
    batches = micro_batches(4)
    sharp.backward(
        lambda b: nn.functional.cross_entropy(model(b[0]), b[1]), micro_batches=batches, backward=accelerator.backward
    )
    accumulated = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    x, y = (torch.cat(part) for part in zip(*batches, strict=True))
    sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
    for a, p in zip(accumulated, (p for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_two_processes_equal_one_on_the_concatenated_batch() -> None:
    cases = [(1, True), (2, True), (2, False)]
    answers = distributed.run(2, ranks.with_accelerate, cases)
    for case, first, second in zip(cases, *answers, strict=True):
        for name in ranks.METHODS:
            assert torch.equal(first[name], second[name]), f"{name}, {case}: ranks differ"
            torch.testing.assert_close(first[name], ranks.single(name, *case))
