"""Defaults as --help shows them where the task has its say."""

from __future__ import annotations

from typing import Any

from steppe.compare.data import tasks
from steppe.compare.engine.spec import Spec
from steppe.methods._row import Row


def _shown(default: Any) -> str:
    if isinstance(default, list):
        said = ",".join(map(str, default))
    else:
        said = f"{default:g}" if isinstance(default, float) else str(default or "")
    return f"the task's, or {said}" if said else "the task's"


_PROPOSED = dict.fromkeys([*tasks.TEXT, *(name for each in tasks.BUILT_IN.values() for name in each.recipe)])
SHOWN = {name: _shown(Spec.model_fields[name].default) for name in _PROPOSED} | {"rho": _shown(list(Row.radii))}
"""Name of a setting -> what stands for its default."""
