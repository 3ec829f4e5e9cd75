"""The base with half the epochs: which runs there are, how long they train, and studies from before there were any."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from steppe._command.progress import PlainProgress
from steppe._command.ranks import InStep
from steppe.compare.engine import run, study
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, kept_spec, resolve

HALF = Run("base", None, 0, "half")


def spec(**flags: Any) -> Spec:
    return resolve({"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 3, "rho": 0.1, **flags})


def variants(made: Spec) -> dict[str, int]:
    """How many runs there are of the base at each of its lengths."""
    runs = [each for each in Plan(made, made.hash()).needed({}).values() if each.method == "base"]
    return {name: sum(each.variant == name for each in runs) for name in ("plain", "double", "half")}


def test_the_base_is_run_so_on_every_seed_and_counted() -> None:
    made = spec()
    assert variants(made) == {"plain": 3, "double": 3, "half": 3} and Plan(made, "").total() == 3 + 3 + 3 + 3
    assert variants(spec(half=False)) == {"plain": 3, "double": 3, "half": 0}


@pytest.mark.parametrize(("length", "steps"), [({"epochs": 3}, 6), ({"max_steps": 7}, 3), ({"max_steps": 1}, 1)])
def test_half_the_steps_but_one_at_least(length: dict[str, int], steps: int) -> None:
    assert HALF.steps(spec(**length), 4) == steps


def test_the_schedule_is_half_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate comes to its end; so the training is not the first half of a whole one."""
    trainers, made = [], run.make_trainer
    monkeypatch.setattr(run, "make_trainer", lambda *a, **k: trainers.append(made(*a, **k)) or trainers[-1])
    record, whole = (run.train(spec(epochs=4), each) for each in (HALF, Run("base", None, 0)))
    assert (record["epochs"], record["steps"], record["variant"]) == (2, whole["steps"] // 2, "half")
    assert trainers[0].scheduler.get_last_lr() == pytest.approx([0.0], abs=1e-12)
    assert record["curve"]["train_loss"][0] != whole["curve"]["train_loss"][0]


def test_a_study_from_before_has_none_and_the_same_command_adds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "Pool", lambda size: InStep())
    monkeypatch.setattr(study.cost, "measure", lambda *_: {"methods": {}})
    flags = {"epochs": 2, "jobs": 1, "out": str(tmp_path)}
    before = compared(spec(half=False, **flags))
    told, kept = json.loads((tmp_path / "spec.json").read_text()), runs(tmp_path)
    assert told.pop("half") is False and "half" not in before["baselines"]
    (tmp_path / "spec.json").write_text(json.dumps(told))
    assert kept_spec(told, tmp_path).half is False
    again = study.rewrite(tmp_path).summary
    assert again["notes"] == before["notes"] and not any("half" in note for note in again["notes"])
    after = compared(spec(**flags))
    assert {"half", "half_early"} <= after["baselines"].keys()
    assert len(runs(tmp_path) - kept) == 3 and all(name.startswith("base-half-seed") for name in runs(tmp_path) - kept)
    assert kept_spec(json.loads((tmp_path / "spec.json").read_text()), tmp_path).half is True


def compared(made: Spec) -> dict[str, Any]:
    with PlainProgress(Console(quiet=True)) as shown:
        return study.compare(study.check(made), shown).summary


def runs(folder: Path) -> set[str]:
    return {path.name for path in (folder / "runs").iterdir()}
