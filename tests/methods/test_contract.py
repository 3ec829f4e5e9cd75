"""What every method must keep, driven by its row: a new method is covered by being listed."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.problems import batches, everything, loss_of, losses_of, net, same, weights
from tests.trajectory_cases import CASES
from torch import nn

import steppe
from steppe.methods import METHODS, Row, card, get

ROOT = Path(__file__).parent.parent.parent
GOOD = [(name, i) for name, row in METHODS.items() for i in range(len(row.good))]
BAD = [(name, i) for name, row in METHODS.items() for i in range(len(row.bad))]


def build(row: Row, settings: dict[str, Any], model: nn.Module | None = None) -> Any:
    model = net(lora=row.lora) if model is None else model
    make = row.optimizer or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    optimizer = make(model.parameters())
    return model, optimizer, row.recipe(model, optimizer, **settings)


def loss_for(name: str, model: nn.Module) -> Any:
    return losses_of(model) if METHODS[name].per_sample else loss_of(model)


@pytest.mark.parametrize(("name", "i"), GOOD)
def test_good_settings_train_and_leave_the_weights_to_the_optimizer(name: str, i: int) -> None:
    model, optimizer, sharp = build(METHODS[name], dict(METHODS[name].good[i]))
    for batch in batches(5):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        loss = sharp.backward(loss_for(name, model), batch)
        assert same(before, {n: p.detach() for n, p in model.named_parameters()})
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert sharp.step == 5 and model.norm.num_batches_tracked == 5


@pytest.mark.parametrize(("name", "i"), BAD)
def test_bad_settings_are_refused_in_one_sentence(name: str, i: int) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        build(METHODS[name], dict(METHODS[name].bad[i]))
    assert "\n" not in str(error.value) and ("expected" in str(error.value) or "needs" in str(error.value))


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.lora])
def test_a_part_that_a_method_makes_by_itself_is_refused_in_our_words(name: str) -> None:
    parts: dict[str, Any] = {"ascent": steppe.Ascent(), "look": steppe.Look(2), "schedule": steppe.Always()}
    parts |= {"combine": steppe.Replace(), "hardest": 0.5, "select": steppe.Sparse()}
    refused = []
    for part, value in parts.items():
        try:
            build(METHODS[name], dict(METHODS[name].good[0]) | {part: value})
        except (TypeError, ValueError) as error:
            refused.append(part)
            assert "keyword" not in str(error) and "expected" in str(error), error
    assert "ascent" in refused


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_scale_does_not_change_the_direction(name: str) -> None:
    """1024 L gives 1024 d; an even power of two, so exactly but for the adaptive policy's own threshold."""
    if name == "aesam":
        pytest.skip("AE-SAM compares ||g||^2 with its start value e^-10, which has the loss's unit")
    if name in ("sl_sam", "arwp", "le_sam"):
        pytest.skip("SL-SAM's probabilities, ARWP's noise and LE-SAM's budget have the loss's unit")
    results = []
    for scale in (1.0, 1024.0):
        model = net(dropout=0, lora=METHODS[name].lora)
        make = METHODS[name].optimizer or (lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9))
        optimizer = make(model.parameters())
        sharp = METHODS[name].recipe(model, optimizer, **dict(METHODS[name].good[0]))
        for batch in batches(3):
            optimizer.zero_grad()
            sharp.backward(lambda b, m=model, s=scale: loss_for(name, m)(b) * s, batch)
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            optimizer.step()
        results.append({n: p.grad / scale for n, p in model.named_parameters() if p.grad is not None})
    for n in results[0]:
        torch.testing.assert_close(results[0][n], results[1][n], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_the_state_is_plain_data(name: str, tmp_path: Path) -> None:
    model, optimizer, sharp = build(METHODS[name], dict(METHODS[name].good[0]))
    sharp.backward(loss_for(name, model), next(batches(1)))
    optimizer.step()
    state = sharp.state_dict()
    torch.save(state, tmp_path / "s.pt")
    loaded = torch.load(tmp_path / "s.pt", weights_only=True)
    tensors = ("memory", "auxiliary", "ascent") if METHODS[name].lora else ("memory",)  # "ascent": Bi-LoRA's Adam
    settings = {k: v for k, v in loaded.items() if k not in tensors}
    assert json.loads(json.dumps(settings)) == {k: v for k, v in state.items() if k not in tensors}
    sharp.load_state_dict(loaded)
    assert repr(sharp).startswith(f"{type(sharp).__name__}(")


@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_one(name: str) -> None:
    """What hosts ask for is there, and is true: only those that run passes of their own may ascend."""
    model, optimizer, sharp = build(METHODS[name], dict(METHODS[name].good[0]))
    assert isinstance(sharp, steppe.Method) and sharp.optimizer is optimizer and sharp.hosts_length is False
    assert sharp.needs.passes is not METHODS[name].lora and sharp.needs.per_sample is METHODS[name].per_sample
    assert hasattr(sharp, "ascend") is sharp.needs.passes


@pytest.mark.parametrize("name", METHODS)
def test_the_weights_are_exact_after_an_error_in_any_pass(name: str) -> None:
    """In the first, the second, ... until there are no more; the step before has left what a direction remembers."""
    model, optimizer, sharp = build(METHODS[name], dict(METHODS[name].good[0]))
    f, batch = loss_for(name, model), next(batches(1))
    sharp.backward(f, batch)
    optimizer.step()
    optimizer.zero_grad()
    failed = 0
    for failing in range(1, 6):
        before, calls = weights(everything(model)), 0

        def fails(batch: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise MemoryError
            return f(batch)

        try:
            sharp.backward(fails, batch)
        except MemoryError:
            failed += 1
        assert same(weights(everything(model)), before)
        optimizer.zero_grad()
        if calls < failing:
            break
    assert failed == calls >= 1, "every pass has failed once"


@pytest.mark.parametrize("name", METHODS)
def test_each_method_has_file_row_export_card_and_tests(name: str) -> None:
    row = get(name)
    module = inspect.getmodule(row.recipe)
    assert module is not None and row.recipe.__module__.startswith(("steppe.methods.", "steppe.lora."))
    assert getattr(steppe, row.recipe.__name__) is row.recipe
    text = card(name)
    for fact in (row.title, row.passes, row.buffers, row.paper.split(",")[0], "**Args**", "**Cost:**", "**Source:**"):
        assert fact in text
    for parameter in list(inspect.signature(row.recipe).parameters)[2:]:
        assert f"\n- `{parameter}`: " in text, f"the card of {name} does not describe {parameter}"
    assert row.title.lower() in (ROOT / "CHANGELOG.md").read_text().lower()
    assert row.good and row.bad and str(row.year) and row.use
    if not row.lora:  # the references of LoRA's methods are in tests/lora
        assert name in {case.method for case in CASES}, f"{name} has no reference trajectory"


def test_each_file_of_methods_is_in_the_registry() -> None:
    files = {p.stem for p in (ROOT / "src" / "steppe" / "methods").glob("[a-z]*.py")}
    rows = {name: vars(importlib.import_module(f"steppe.methods.{name}")) for name in files}
    listed = {name for name, held in rows.items() if any(row in held.values() for row in METHODS.values())}
    assert listed == files


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="there is no method 'looksam'; did you mean 'look_sam'"):
        get("looksam")
    with pytest.raises(ValueError, match="there is no method 'BAR'; did you mean 'nbar' or 'obar'"):
        get("BAR")


COUNTED = [
    ("sam", {}, 2.0), ("asam", {}, 2.0), ("layer_sam", {}, 2.0), ("gsam", {}, 2.0),
    ("fsam", {}, 2.0),
    ("wsam", {}, 2.0), ("gnp", {}, 2.0), ("adasam", {}, 2.0), ("sam_adamw", {}, 2.0), ("sam_on", {}, 2.0),
    ("sl_sam", {}, 2.0),
    ("look_sam", {"k": 5}, 1.2),
    ("look_layer_sam", {"k": 10}, 1.1), ("late_sam", {"start": 15}, 1.25), ("sam", {"samples": 2}, 1.25),
    ("tail_sam", {}, 1.0), ("tail_sam", {"lr_max": 1.0, "warmup": 15}, 1.25),
    *((name, dict(row.good[0]), 1.0) for name, row in METHODS.items() if row.lora),
    ("msam", {}, 1.0), ("s2_sam", {}, 1.0), ("rwp", {}, 1.0), ("arwp", {}, 1.0), ("rwp", {"gamma": 0.5}, 2.0),
    ("muon_sam", {}, 2.0), ("le_sam", {}, 2.0), ("le_sam", {"sigma": 0.0}, 1.0),
    ("k_sam", {}, 1 / 3 + 0.25 + 0.5), ("k_sam", {"samples": 2, "descent": None}, 1 / 3 + 0.25 + 1),
    ("esam", {}, 1 + 1 / 3 + 0.5), ("esam", {"gamma": 1.0}, 2.0), ("esam", {"gamma": 0.25}, 1 + 1 / 3 + 0.25),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "passes"), COUNTED)
def test_passes_are_counted(name: str, settings: dict[str, Any], passes: float) -> None:
    """Over a whole cycle of those that have one; the others do in every step what they do in the first."""
    same_each_step = passes in (1.0, 2.0) and name != "tail_sam"
    assert count(name, settings, 3 if same_each_step else 20) == pytest.approx(passes, rel=1e-12)


@pytest.mark.parametrize("name", ["rst", "grst"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_passes_of_random_methods_are_one_plus_the_drawn_share(name: str, seed: int) -> None:
    share = sum(steppe.schedule.uniform(seed, t) < 0.5 for t in range(20)) / 20
    assert count(name, {"p": 0.5, "seed": seed}) == 1 + share and 0.2 < share < 0.8


def count(name: str, settings: dict[str, Any], steps: int = 20) -> float:
    """Passes per step, counted in samples by a hook on the forward; one without a graph is a third.

    The list only grows: a sum would be put back, as all that a hook binds is.
    """
    model, optimizer, sharp = build(METHODS[name], settings)
    seen: list[float] = []

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(inputs[0]) * (1 if torch.is_grad_enabled() else 1 / 3))

    model.register_forward_pre_hook(hook)
    for batch in batches(steps):
        sharp.backward(loss_for(name, model), batch)
        optimizer.step()
        optimizer.zero_grad()
    return sum(seen) / (8 * steps)
