"""What a figure was made with."""

from __future__ import annotations

import platform
import time
from datetime import datetime, timezone
from typing import Any

import torch

import steppe


def made_with(device: str) -> dict[str, Any]:
    """Versions, machine, device (a CUDA device by its model) and threads."""
    return {
        "steppe": steppe.__version__, "torch": torch.__version__, "python": platform.python_version(),
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(), "platform": platform.platform(),
    }  # fmt: skip


def finished() -> str:
    """Now, as records have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def ended(start: float) -> dict[str, Any]:
    """How long it took since `start` of the clock, and when it ended."""
    return {"seconds": time.perf_counter() - start, "finished": finished()}
