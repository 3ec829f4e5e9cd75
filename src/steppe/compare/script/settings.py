"""Which settings of a comparison belong to scripts, and what a script must be to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steppe.compare.data import tasks
from steppe.compare.data.metrics import read_metric
from steppe.compare.data.options import DataOptions
from steppe.compare.script.source import Script, check_settings, load

UNHEARD = {
    *DataOptions.__dataclass_fields__, *tasks.TEXT, *tasks.TEXT_ONLY, "max_steps", "eval_every", "sharpness_rho",
    "parallel", "also", "half", "epochs_grid",
}  # fmt: skip
"""Settings of a comparison that a script has no use for: data, model and training are its own."""


def unheard(script: Script) -> set[str]:
    """The same of one script: whether the base trains half as long, too, is asked where its length may be a half."""
    return UNHEARD - {"half"} if script.halves else UNHEARD


def check(given: Mapping[str, Any], settings: Mapping[str, Any] | None) -> None:
    """Refuse settings that do not go together, before anything is read; `settings` are the arguments of the script."""
    if given.get("script") is None:
        if settings is not None:
            raise ValueError("settings are arguments of a script; leave them out, or name one with --script")
        return
    script, own = load(str(given["script"])), settings or {}
    if "also" in given:
        raise ValueError(
            "also is measured on a model and its data, and a script has both of its own; leave it out, and give such "
            "figures by name beside the others: {'accuracy': ..., 'ece': ...}"
        )
    for name in given:
        if name in unheard(script):
            instead = f" (or give the script's own argument with --settings {name}=...)" if script.takes(name) else ""
            raise ValueError(f"a script brings its own data, model and training; leave {name!r} out{instead}")
    check_settings(script, own, {"lr": None} if given.get("lr_grid") else {})
    for flag, argument in (("lr_grid", "lr"), ("device", "device")):
        if given.get(flag) is not None and not script.takes(argument):
            raise ValueError(f"{flag} goes to the argument {argument!r}, which {script.where} does not take")
    if given.get("lr_grid") and "lr" in own:
        raise ValueError("lr_grid and settings lr=... are both given; give one of them")
    if given.get("metric") is not None:
        read_metric(str(given["metric"]))
