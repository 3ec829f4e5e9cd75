"""What is to be looked at, and how closely, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from steppe._parts import check, check_choice, check_count
from steppe.diagnostics.sharpness import RADII

PARTS = ("curvature", "sharpness", "plane", "balance")


@dataclass(frozen=True)
class Request:
    """What each field is stands at the field; it is the help of the flag of that name."""

    what: Annotated[
        str,
        Field(
            description="Folder of a comparison or of a fine-tuning (its --out), or module:function that returns "
            "(model, loss_of, batches) and, if there is one, the base's state_dict."
        ),
    ]
    parts: Annotated[
        tuple[str, ...], Field(description=f"Which of {', '.join(PARTS)} to measure (balance where there are pairs).")
    ] = PARTS
    method: Annotated[
        str | None, Field(description="Of a comparison, the method to look at beside the base (best on validation).")
    ] = None
    seed: Annotated[int | None, Field(description="Of a comparison, the run's seed (its first).")] = None
    examples: Annotated[int, Field(description="Training examples that the loss is over, at most.")] = 512
    batch: Annotated[int, Field(description="Examples of a pass.")] = 64
    m: Annotated[int, Field(description="Samples that are perturbed together for the worst case.")] = 64
    radii: Annotated[tuple[float, ...], Field(description="Radii of the sharpness.")] = RADII
    climbs: Annotated[int, Field(description="Gradients that each worst case follows, one after the other.")] = 1
    draws: Annotated[int, Field(description="Random directions for the average.")] = 4
    steps: Annotated[int, Field(description="Of Lanczos.")] = 40
    probes: Annotated[int, Field(description="Hessian products for the trace.")] = 60
    runs: Annotated[int, Field(description="Of Lanczos for the density, 0 for none.")] = 2
    points: Annotated[int, Field(description="Of the plane along each side.")] = 21
    draw_seed: Annotated[int, Field(description="Of random vectors and directions.")] = 0

    def __post_init__(self) -> None:
        for part in self.parts:
            check_choice("parts", part, PARTS)
        if not self.parts:
            raise ValueError(f"parts is empty; expected some of {', '.join(PARTS)}")
        for name in ("examples", "batch", "m", "climbs", "draws", "steps", "probes"):
            check_count(name, getattr(self, name))
        check_count("runs", self.runs, 0)
        check_count("points", self.points, 2)
        check_count("draw_seed", self.draw_seed, 0)
        for rho in self.radii:
            check("radii", rho, 1e-30)
        if not self.radii:
            raise ValueError("radii is empty; expected numbers above 0")
