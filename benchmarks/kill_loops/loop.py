"""What a loop is to kill_training.py."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .watch import Watch


@dataclass(frozen=True)
class Loop:
    """A loop that saves as its host does, and begins from the last checkpoint in the folder if there is one.

    Attributes:
        title: its name in the README's table.
        train: ``(folder, method, watch, rank) -> state at the end``, to be compared bit for bit.
        checkpoints: the folder's checkpoints by step, by the loop's own rule of what is one.
        read: what a checkpoint holds.
        unfinished: what a killed save has left.
        ranks: processes.
    """

    title: str
    train: Callable[[Path, str, Watch, int], dict[str, Any]]
    checkpoints: Callable[[Path], dict[int, Path]]
    read: Callable[[Path], dict[str, Any]]
    unfinished: Callable[[Path], list[Path]]
    ranks: int = 1


def last(checkpoints: dict[int, Path]) -> Path | None:
    """The latest one."""
    return checkpoints[max(checkpoints)] if checkpoints else None


def numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """Paths by the number at the end of their names."""
    return {int("".join(filter(str.isdigit, path.stem))): path for path in folder.glob(pattern)}
