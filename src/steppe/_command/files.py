"""Files written whole or not at all, and JSON without numbers that JSON does not have."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` so that a reader, or a killed writer, never leaves half a file there."""
    write_text(path, json.dumps(finite(value), indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write `text` to a file beside `path` first, down to the disk, then move it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk needs its room back
        raise


def read_json(path: Path) -> Any:
    """The value in `path`, or None where there is none or none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def finite(value: Any) -> Any:
    """`value` with None for every number JSON does not have (a diverged run has infinite losses)."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
