"""Everything that decides which examples a seed trains on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataOptions:
    """The settings of a study that its data listen to; each is a field of the same name there."""

    task: str
    labelled: int | None = None
    validation: int | None = None
    noise: float = 0.0
    image_size: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    text_column: str | None = None
    per_class: int | None = None
    max_length: int | None = None
    model: str = ""
    parts: tuple[float, ...] | None = None
    stride: int | None = None
    lookback: int | None = None
    horizon: int | None = None
    targets: tuple[str, ...] | None = None
    time_column: str | None = None
    season: int | None = None
    leave_out: tuple[str, ...] | None = None

    target: str | None = None
    kind: str | None = None
    group: str | None = None
    context: int | None = None

    @property
    def place(self) -> str:
        """The file or folder of a task that is called KIND:PLACE."""
        return self.task.partition(":")[2]
