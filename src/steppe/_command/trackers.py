"""Runs as experiment trackers keep them: on this machine, unless the tracker's own settings say other.

Each tracker is a function that writes one finished run whole; a mark in the folder says that it has been written, so
that a resumed command writes no run twice.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steppe._command.lookup import nearest

PROJECT = "steppe"


@dataclass(frozen=True)
class Logged:
    """One run, its name for a reader; points are optimizer steps and the figures there, in order."""

    id: str
    name: str
    settings: Mapping[str, Any]
    points: Sequence[tuple[int, Mapping[str, float]]]
    final: Mapping[str, float] = field(default_factory=dict)


def _tensorboard(place: Path, run: Logged) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(place / "tensorboard" / run.id)) as writer:
        writer.add_text("settings", f"```\n{json.dumps(run.settings, indent=1)}\n```")
        for step, figures in _with_final(run):
            for name, value in figures.items():
                writer.add_scalar(name, value, step)


def _wandb(place: Path, run: Logged) -> None:
    import wandb

    options: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT), "mode": os.environ.get("WANDB_MODE", "offline"),
        "id": run.id[-64:], "name": run.name, "config": dict(run.settings), "dir": str(place),
        "settings": wandb.Settings(silent=True, console="off"),
    }  # fmt: skip
    made = wandb.init(**options)
    for step, figures in run.points:
        made.log(dict(figures), step=step)
    made.summary.update(dict(run.final))
    made.finish()


def _mlflow(place: Path, run: Logged) -> None:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases ask for a database otherwise
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or (place / "mlruns").absolute().as_uri())
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    made = client.create_run(known.experiment_id if known else client.create_experiment(name), run_name=run.name)
    now = int(time.time() * 1000)
    metrics = [Metric(key, value, now, step) for step, each in _with_final(run) for key, value in each.items()]
    params = [Param(key, str(value)) for key, value in run.settings.items()]
    for start in range(0, len(metrics) or 1, 500):
        client.log_batch(made.info.run_id, metrics=metrics[start : start + 500], params=params if not start else [])
    client.set_terminated(made.info.run_id)


def _trackio(place: Path, run: Logged) -> None:
    import trackio  # its one database for all projects stays where its dashboard looks for it, on this machine

    trackio.init(project=PROJECT, name=run.id, config=dict(run.settings), embed=False)
    for step, figures in run.points:
        trackio.log(dict(figures), step=step)
    trackio.log(dict(run.final))
    trackio.finish()


def _with_final(run: Logged) -> Sequence[tuple[int, Mapping[str, float]]]:
    return [*run.points, (run.points[-1][0] if run.points else 0, run.final)]


TRACKERS: dict[str, tuple[Callable[[Path, Logged], None], str]] = {
    "tensorboard": (_tensorboard, "tensorboard"), "wandb": (_wandb, "wandb"), "mlflow": (_mlflow, "mlflow"),
    "trackio": (_trackio, "trackio"),
}  # fmt: skip
"""Name -> what writes a run, and the module it needs."""


def offline(names: str | Sequence[str], place: Path) -> None:
    """Tell the trackers among `names`, for whoever calls them, to keep what they get in a folder and send nothing.

    Args:
        names: as the Trainer's `report_to` has them; others than ours are left alone.
        place: the folder; what the environment says already holds.
    """
    ours = [name for name in ([names] if isinstance(names, str) else names) if name in TRACKERS]
    check(ours)
    where = place.absolute()
    says = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": str(where / "tensorboard")},
        "wandb": {"WANDB_MODE": "offline", "WANDB_DIR": str(where), "WANDB_PROJECT": PROJECT},
        "mlflow": {
            "MLFLOW_TRACKING_URI": (where / "mlruns").as_uri(), "MLFLOW_EXPERIMENT_NAME": PROJECT,
            "MLFLOW_ALLOW_FILE_STORE": "true",
        },
    }  # fmt: skip
    for name in filter(says.__contains__, ours):
        for variable, value in says[name].items():
            os.environ.setdefault(variable, value)


def check(names: Sequence[str]) -> None:
    """Refuse what is no tracker, or is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"log: unknown tracker {name!r}; {nearest(name, TRACKERS)}")
        if not _there(TRACKERS[name][1]):
            raise ValueError(f"--log {name} needs {name}, which is not installed: pip install 'steppe[{name}]'")


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it is loaded without a specification, or barred
        return sys.modules.get(module) is not None


class Log:
    """The trackers of one results folder; what could not be written is said, and the work goes on."""

    def __init__(self, names: Sequence[str], place: Path, say: Callable[[str], None]) -> None:
        self._names, self._place, self._say = names, place, say

    def write(self, id_: str, made: Callable[[], Logged]) -> None:
        """Give a run, made where it is needed, to every tracker that does not have it yet."""
        for name in self._names:
            mark = self._place / ".logged" / name / id_
            mark.parent.mkdir(parents=True, exist_ok=True)
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                continue
            try:
                with contextlib.redirect_stdout(sys.stderr):  # where their greetings go
                    TRACKERS[name][0](self._place, made())
            except Exception as error:
                mark.unlink(missing_ok=True)
                why = f"{type(error).__name__}: {error}"
                self._say(f"{name} could not take {id_} ({why}); the next command tries again")
