"""A record of a comparison as experiment trackers take it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from steppe._command.trackers import Logged

_FINAL = ("passes_per_step", "ascended_share", "seconds", "sharpness")


def logged(id_: str, record: Mapping[str, Any], study: str) -> Logged:
    """The curve of a run by optimizer step, and its figures at the end under ``final/``.

    By the hash of its settings, `study`, the runs of one study are found.
    """
    names = ("method", "label", "variant", "seed", "rho", "lr", "chosen_epochs", str(record.get("tunes")))
    chosen = {key: record.get(key) for key in names}
    settings = {key: value for key, value in chosen.items() if value is not None} | {"study": study}
    settings |= record.get("settings") or {}
    final = {key: value for key, value in record.items() if key.startswith(("val_", "test_")) or key in _FINAL}
    name = f"{record.get('label')} seed {record.get('seed')}"
    return Logged(id_, name, settings, _points(record), {f"final/{key}": v for key, v in _numbers(final).items()})


def _points(record: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    curve = record.get("curve") or {}
    epochs = curve.get("epoch") or []
    per_epoch = record.get("steps", 0) / (record.get("epochs") or 1)
    figures = [{name: values[at] for name, values in curve.items() if at < len(values)} for at in range(len(epochs))]
    return [(round(each["epoch"] * per_epoch), _numbers(each)) for each in figures]


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    """What a tracker can draw."""
    plain = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in plain.items() if math.isfinite(value)}
