"""Resumed equals uninterrupted, bit for bit: a random step of every method, each continued in another process."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import bare
from tests.problems import batches, everything, loss_of, losses_of, net

import steppe

TOTAL = 8
Built = tuple[torch.nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]

SETTINGS: dict[str, dict[str, Any]] = {
    "rst": {"schedule": "linear2", "p": 0.2, "total_steps": TOTAL},
    "grst": {"schedule": "trigonometric", "p": 0.1, "total_steps": TOTAL},
    "look_sam": {"k": 4, "alpha": 0.3},
    "look_layer_sam": {"k": 3, "push": "natural", "rho": 0.02},
    "aesam": {"total_steps": TOTAL},
    "late_sam": {"start": 5},
}
COMPOSED = "composed"
# BAR acts on the weights of adapters: its own resume is in tests/lora.
NAMES = [*(name for name, row in steppe.methods.METHODS.items() if not row.lora), COMPOSED]


def build(name: str, settings: dict[str, Any] | None = None) -> Built:
    model = net(torch.float32)
    row = None if name == COMPOSED else steppe.methods.get(name)
    adam: Callable[..., torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, lr=0.01)  # noqa: E731
    optimizer = (row and row.optimizer or adam)(model.parameters())
    if row is not None:
        return (
            model,
            optimizer,
            row.recipe(model, optimizer, seed=3, **(SETTINGS.get(name, {}) if settings is None else settings)),
        )
    return model, optimizer, steppe.SharpnessAware(
        model,
        optimizer,
        ascent=steppe.Ascent(rho=0.02, metric=steppe.Adaptive(), scope="trust", direction=steppe.Friendly(0.5)),
        schedule=steppe.Every(2) & steppe.AboveNorm(TOTAL) & steppe.Bernoulli(0.8),
        combine=steppe.Reuse(0.2, refresh=steppe.Mix(steppe.curves.Linear(0.2, 1.4, TOTAL))),
        seed=3,
    )  # fmt: skip


def advance(built: Built, start: int, stop: int) -> list[bool]:
    model, optimizer, sharp = built
    decisions = []
    for t, batch in enumerate(batches(TOTAL, torch.float32)):
        if start <= t < stop:
            torch.manual_seed(t)
            sharp.backward((losses_of if sharp.needs.per_sample else loss_of)(model), batch)
            decisions.append(sharp.last.ascended)
            optimizer.step()
            optimizer.zero_grad()
    return decisions


def outcome(built: Built, decisions: list[bool]) -> dict[str, Any]:
    return {"weights": everything(built[0]), "sharp": built[2].state_dict(), "decisions": decisions}


def points() -> list[tuple[str, int]]:
    """A step within, for each; benchmarks/kill_training.py goes on from 200 others, behind real kills."""
    draw = random.Random(0)
    return [(name, draw.randrange(1, TOTAL)) for name in NAMES]


def save_and_go_on(folder: Path, number: int, name: str, at: int) -> None:
    built = build(name)
    advance(built, 0, at)
    state = {"model": built[0].state_dict(), "optimizer": built[1].state_dict(), "sharp": built[2].state_dict()}
    torch.save(state, folder / f"{number}.pt")
    torch.save(outcome(built, advance(built, at, TOTAL)), folder / f"{number}.expected.pt")


def load_and_go_on(folder: Path, number: int, name: str, at: int) -> None:
    built = build(name)
    state = torch.load(folder / f"{number}.pt", weights_only=True)
    for target, key in zip(built, ("model", "optimizer", "sharp"), strict=True):
        target.load_state_dict(state[key])
    expected = torch.load(folder / f"{number}.expected.pt", weights_only=True)
    assert equal(outcome(built, advance(built, at, TOTAL)), expected), f"{name} resumed at step {at} differs"


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


def main(folder: str) -> None:
    torch.set_num_threads(1)
    for number, (name, at) in enumerate(points()):
        load_and_go_on(Path(folder), number, name, at)
    print(f"{len(points())} of {len(points())} equal")


def test_every_method_resumes_bit_for_bit(tmp_path: Path) -> None:
    for number, (name, at) in enumerate(points()):
        save_and_go_on(tmp_path, number, name, at)
    call = f"from tests.test_resume import main; main({str(tmp_path)!r})"
    root = Path(__file__).parent.parent
    done = bare.run(call, root)  # where strings have other hashes: nothing is drawn from those
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == f"{len(NAMES)} of {len(NAMES)} equal"


def test_a_resume_that_forgets_the_state_is_noticed(tmp_path: Path) -> None:
    """The comparison above can fail: without the sharpness-aware state a LookSAM cycle starts anew."""
    built, forgetful = build("look_sam"), build("look_sam")
    advance(built, 0, 6)
    for a, b in zip(built[:2], forgetful[:2], strict=True):
        b.load_state_dict(a.state_dict())  # type: ignore[union-attr]
    assert not equal(outcome(built, advance(built, 6, TOTAL)), outcome(forgetful, advance(forgetful, 6, TOTAL)))


BAD_STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another object": (lambda s: {"state": {}}, "not the state of a steppe.SharpnessAware"),
    "not a dict": (lambda s: [1], "not the state of a steppe.SharpnessAware"),
    "an unknown format": (lambda s: s | {"format": 2}, "not the state of a steppe.SharpnessAware"),
    "an unknown part": (lambda s: s | {"schedule": {"part": "Sometimes"}}, "'Sometimes', which is not defined here"),
    "a function": (lambda s: s | {"ascent": s["ascent"] | {"rho": {"function": "mine"}}}, "your own function 'mine'"),
    "another model": (
        lambda s: s | {"memory": {"combine": {"g_v": {"head.weight": torch.zeros(2)}}}}, "no such parameter"),
    "another shape": (
        lambda s: s | {"memory": {"combine": {"g_v": {"first.weight": torch.zeros(2)}}}}, r"shape \(7, 5\) here"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_state_that_does_not_fit_is_refused_whole(case: str) -> None:
    spoil, message = BAD_STATES[case]
    built = build("look_sam")
    advance(built, 0, 3)
    before = outcome(built, [])
    with pytest.raises(ValueError, match=message):
        built[2].load_state_dict(spoil(built[2].state_dict()))
    assert equal(outcome(built, []), before)
