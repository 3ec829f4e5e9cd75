"""`steppe finetune --log`: what the Trainer logs lies in the run's folder, with what the method's steps were like."""

import os
import sys
from pathlib import Path

import pytest
from tests.finetune.cases import run

from steppe.finetune.arguments import flags


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracker's variable is set before, nor left behind."""
    for variable in ("TENSORBOARD_LOGGING_DIR", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


@pytest.mark.usefixtures("bare")
def test_a_tracker_has_the_figures_of_the_steps(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert flags(["--log", "tensorboard"], []) == {"report_to": "tensorboard"}
    result = run(tmp_path, method="sam:rho=0.1", training={"report_to": "tensorboard"})
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str((tmp_path / "out" / "tensorboard").absolute())
    found = accumulator.EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    rows = [row for row in result["curve"] if "loss" in row]
    for name in ("loss", "passes_per_step", "surrogate_gap", "perturbation_norm"):
        seen = [(each.step, each.value) for each in found.Scalars(f"train/{name}")]
        assert seen == [(row["step"], pytest.approx(row[name])) for row in rows], name
    assert [row["perturbation_norm"] for row in rows] == pytest.approx([0.1] * len(rows), rel=1e-3)


@pytest.mark.usefixtures("bare")
def test_a_tracker_that_is_not_installed_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="^--log wandb needs wandb, which is not installed: pip install"):
        run(tmp_path, training={"report_to": "wandb"})
    assert "WANDB_MODE" not in os.environ
