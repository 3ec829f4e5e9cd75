"""Fabric: `backward=fabric.backward`, with the model and the optimizer as `fabric.setup` gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.by_hand import LOOP_METHODS, Batch, base, micro_batches, sharpen, train
from tests.problems import everything, net, same
from torch import nn

import steppe

L = pytest.importorskip("lightning")
from lightning.fabric.plugins import MixedPrecision  # noqa: E402


def setup(name: str, **settings: Any) -> tuple[Any, Any, Any, steppe.SharpnessAware]:
    fabric = L.Fabric(accelerator="cpu", **settings)
    model = net(torch.float32)
    model, optimizer = fabric.setup(model, base(name, model))
    return fabric, model, optimizer, sharpen(name, model, optimizer)


def run(
    host: tuple[Any, Any, Any, steppe.SharpnessAware], batches: list[Batch], accumulate: int = 1, clip: float = 0.0
) -> None:
    """Fabric's own recipe of accumulation; the line of the backward is the one that differs."""
    fabric, model, optimizer, sharp = host
    for i, (x, y) in enumerate(batches):
        torch.manual_seed(i)
        accumulating = (i + 1) % accumulate != 0
        with fabric.no_backward_sync(model, enabled=accumulating):
            sharp.backward(
                lambda: nn.functional.cross_entropy(model(x), y) / accumulate, backward=fabric.backward
            )  # fmt: skip
        if not accumulating:
            if clip:
                fabric.clip_gradients(model, optimizer, max_norm=clip)
            optimizer.step()
            optimizer.zero_grad()


# Every combination for the method that remembers and reuses; the cheapest for the others.
THREE_STEPS = [("look_sam", many, kind) for many in (1, 4) for kind in ("fp32", "bf16")]
THREE_STEPS += [(name, 1, "fp32") for name in LOOP_METHODS if name != "look_sam"]


@pytest.mark.parametrize(("name", "accumulate", "kind"), THREE_STEPS)
def test_three_steps_equal_the_loop_by_hand(
    name: str, accumulate: int, kind: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("loop", "Fabric")
    record_property("method", name)
    batches = micro_batches(3 * accumulate)
    if kind == "bf16":  # Fabric casts the inputs as well
        batches = [(x.bfloat16().float(), y) for x, y in batches]
    expected, by_hand, _ = train(name, batches, accumulate, kind)
    host = setup(name, precision="bf16-mixed" if kind == "bf16" else "32-true")
    run(host, batches, accumulate)
    assert same(everything(host[1].module), everything(expected))
    assert host[3].step == by_hand.step == 3 and host[3].last.ascended == by_hand.last.ascended


def test_clipping_happens_once_and_after_combining() -> None:
    batches = micro_batches(8)
    expected, _, _ = train("gsam", batches, 4, clip=0.1)
    host = setup("gsam")
    run(host, batches, 4, clip=0.1)
    assert same(everything(host[1].module), everything(expected))


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_16_mixed_skips_a_step_and_the_schedule_does_not_move(name: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    host = setup(name, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    batches = micro_batches(4)
    batches[1] = (batches[1][0] * float("inf"), batches[1][1])
    before = [p.detach().clone() for p in host[1].parameters()]
    run(host, batches[1:2])
    assert all(torch.equal(a, b) for a, b in zip(before, host[1].parameters(), strict=True))
    assert host[3].step == 0 and scaler.get_scale() == 512
    run(host, batches[2:])
    assert host[3].step == 2 and all(p.isfinite().all() for p in host[1].parameters())


@pytest.mark.parametrize("name", LOOP_METHODS)
def test_saved_in_fabrics_checkpoint_it_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    batches = micro_batches(6)
    whole, first, again = setup(name), setup(name), setup(name)
    run(whole, batches)
    run(first, batches[:3])
    fabric, model, optimizer, sharp = first
    fabric.save(tmp_path / "c.ckpt", {"model": model, "optimizer": optimizer, "sharp": sharp})
    fabric, model, optimizer, sharp = again
    fabric.load(tmp_path / "c.ckpt", {"model": model, "optimizer": optimizer, "sharp": sharp})
    assert sharp.step == 3
    for i, batch in enumerate(batches[3:], start=3):
        torch.manual_seed(i)
        x, y = batch
        sharp.backward(lambda: nn.functional.cross_entropy(model(x), y), backward=fabric.backward)
        optimizer.step()
        optimizer.zero_grad()
    assert same(everything(model.module), everything(whole[1].module))


def test_names_are_the_bare_models_and_a_perturbed_model_is_not_saved() -> None:
    _, model, _, sharp = setup("look_sam")
    x, y = micro_batches(1)[0]
    sharp.backward(lambda: nn.functional.cross_entropy(model(x), y))
    sharp.optimizer.step()
    assert set(sharp.state_dict()["memory"]["combine"]["g_v"]) <= {n for n, _ in model.module.named_parameters()}
    with sharp.perturbed(), pytest.raises(RuntimeError, match="while the weights are perturbed"):
        model.state_dict()
