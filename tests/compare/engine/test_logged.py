"""A comparison's runs in a tracker: read back, each once, also those that were kept from before."""

import json
from pathlib import Path

import pytest
import torch

import steppe.compare
from steppe._command.ranks import InStep
from steppe.compare.engine import study
from steppe.compare.engine.curve import Curve
from steppe.compare.engine.logged import logged

TINY = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 1, "rho": 0.1, "epochs": 2, "eval_every": 1}
TINY |= {"half": False}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.setattr(study, "Pool", lambda size: InStep())
    monkeypatch.setattr(study._Session, "cost", lambda *_: None)


def read(out: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    runs = {}
    for folder in (out / "tensorboard").iterdir():
        found = accumulator.EventAccumulator(str(folder)).Reload()
        tags = found.Tags()["scalars"]
        runs[folder.name] = {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in tags}
    return runs


def test_the_figures_of_every_run_are_in_the_tracker_once(tmp_path):
    steppe.compare.run(out=str(tmp_path), log=["tensorboard"], quiet=True, **TINY)
    runs = read(tmp_path)
    kept = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*.json")}
    assert len(runs) == 3 and runs.keys() == kept.keys()
    for id_, found in runs.items():
        curve, steps = kept[id_]["curve"], kept[id_]["steps"]
        places = [round(epoch * steps / kept[id_]["epochs"]) for epoch in curve["epoch"]]
        for name in curve.keys() - {"epoch"}:
            assert found[name] == [(at, pytest.approx(v)) for at, v in zip(places, curve[name], strict=True)], name
        assert found["final/passes_per_step"] == [(steps, 2.0 if id_.startswith("sam") else 1.0)]
        assert found["final/test_accuracy"] == [(steps, pytest.approx(kept[id_]["test_accuracy"]))]
    sam = next(found for id_, found in runs.items() if id_.startswith("sam"))
    assert [value for _, value in sam["perturbation_norm"]] == pytest.approx([0.1, 0.1])
    assert all(value > 0 for _, value in sam["surrogate_gap"]) and len(sam["surrogate_gap"]) == 2
    assert all("surrogate_gap" not in found for id_, found in runs.items() if id_.startswith("base"))
    steppe.compare.run(out=str(tmp_path), log=["tensorboard"], quiet=True, **TINY)
    assert read(tmp_path) == runs


def test_kept_runs_are_logged_when_a_log_is_asked_for(tmp_path):
    steppe.compare.run(out=str(tmp_path), quiet=True, **TINY)
    assert not (tmp_path / "tensorboard").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    steppe.compare.run(out=str(tmp_path), log=["tensorboard"], quiet=True, **TINY)
    assert len(read(tmp_path)) == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == before


def test_a_record_without_a_curve_and_with_numbers_that_are_none_is_logged():
    record = {"method": "sam", "label": "SAM", "seed": 3, "test_accuracy": None, "val_mse": 2.0, "settings": {"k": 5}}
    found = logged("id", record, "study")
    assert found.name == "SAM seed 3" and found.points == [] and found.final == {"final/val_mse": 2.0}
    assert found.settings == {"method": "sam", "label": "SAM", "seed": 3, "study": "study", "k": 5}
    curve = {"epoch": [1, 2], "train_loss": [0.5, None], "surrogate_gap": [None, 0.25]}
    points = logged("id", record | {"curve": curve, "steps": 10, "epochs": 2}, "study").points
    assert points == [(5, {"epoch": 1.0, "train_loss": 0.5}), (10, {"epoch": 2.0, "surrogate_gap": 0.25})]


@pytest.mark.parametrize("samples", [None, 2])
def test_a_gap_is_noted_where_both_losses_are_of_one_batch(samples):
    model, batch = torch.nn.Linear(2, 1), torch.randn(4, 2)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=samples)
    sharp.backward(lambda x: model(x).square().mean(), batch)
    curve = Curve(task=None, seen=None)
    curve.step(sharp)
    assert ("surrogate_gap" in curve._since) == (samples is None)
