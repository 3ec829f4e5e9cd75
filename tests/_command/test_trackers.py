"""Every tracker is read back: the figures that were written are there, once, and nothing went to a network."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from steppe._command import trackers
from steppe._command.trackers import Log, Logged

RUN = Logged(
    "sam-rho0.1-seed0-0123456789ab", "SAM seed 0", {"method": "sam", "rho": 0.1},
    [(10, {"train_loss": 0.5, "surrogate_gap": 0.25}), (20, {"train_loss": 0.125})], {"final/test_accuracy": 0.75},
)  # fmt: skip


def tensorboard(place: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (place / "tensorboard").iterdir()
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def mlflow(place: Path) -> dict[str, list[tuple[int, float]]]:
    from mlflow import MlflowClient

    client = MlflowClient((place / "mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name("steppe")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"method": "sam", "rho": "0.1"} and run.info.status == "FINISHED"
    assert run.info.run_name == "SAM seed 0"
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: [(each.step, each.value) for each in values] for key, values in history.items()}


def pieces(data: bytes) -> Iterator[bytes]:
    """The records of a log as LevelDB and wandb write it: blocks of 32 KiB, in which a record may be cut."""
    at, piece = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece, at = piece + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):
            yield piece
            piece = b""


def wandb_(place: Path) -> dict[str, list[tuple[int, float]]]:
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # as at the end of a process: its service writes what it still holds
    (file,) = (place / "wandb").glob("offline-run-*/*.wandb")
    found: dict[str, list[tuple[int, float]]] = {}
    for data in pieces(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        figures = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for key, value in figures.items():
            if not key.startswith("_"):
                found.setdefault(key, []).append((figures["_step"], value))
        for item in record.summary.update:
            if item.key.startswith("final/"):
                found.setdefault(item.key, []).append((20, json.loads(item.value_json)))
    return {key: values[-2:] if not key.startswith("final/") else values[-1:] for key, values in found.items()}


def trackio(place: Path) -> dict[str, list[tuple[int, float]]]:
    import sqlite3

    (file,) = (place / "of-its-own").glob("steppe*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select step, metrics from metrics where run_name = ? order by step", [RUN.id]).fetchall()
    found: dict[str, list[tuple[int, float]]] = {}
    for step, figures in rows:
        for key, value in json.loads(figures).items():
            found.setdefault(key, []).append((20 if key.startswith("final/") else step, value))
    return found


READ = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb_, "trackio": trackio}


@pytest.mark.parametrize("name", READ)
def test_a_run_is_read_back_with_its_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "of-its-own"))  # or the test would write into the user's
    said: list[str] = []
    for _ in range(2):  # the second time it is there already
        Log([name], tmp_path, said.append).write(RUN.id, lambda: RUN)
    assert not said
    assert READ[name](tmp_path) == {
        "train_loss": [(10, 0.5), (20, 0.125)], "surrogate_gap": [(10, 0.25)], "final/test_accuracy": [(20, 0.75)],
    }  # fmt: skip


def test_a_tracker_that_fails_is_told_of_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def writes(place: Path, run: Logged) -> None:
        written.append(run.id)
        if len(written) == 1:
            raise OSError("disk full")

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", (writes, "json"))
    said: list[str] = []
    log = Log(["tensorboard"], tmp_path, said.append)
    for _ in range(3):
        log.write(RUN.id, lambda: RUN)
    assert written == [RUN.id] * 2
    assert said == [f"tensorboard could not take {RUN.id} (OSError: disk full); the next command tries again"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensorbord", "log: unknown tracker 'tensorbord'; did you mean 'tensorboard'"),
        ("wandb", "--log wandb needs wandb, which is not installed: pip install 'steppe[wandb]'"),
    ],
)
def test_what_cannot_log_is_one_sentence(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError) as refused:
        trackers.check(["tensorboard", name] if name != "wandb" else [name])
    assert str(refused.value).startswith(says)
