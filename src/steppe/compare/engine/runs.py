"""One run of a study: which method, at which values, with which seed; how it is called, and by what it is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from steppe._command.choices import parse
from steppe._command.rows import divided, fingerprint
from steppe.compare.engine.spec import Spec, short_hash

FORMS = {"ema": "averaged", "lawa": "lawa"}
"""Average of the weights -> where the record of a run has its figures."""


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        method: as typed; "base" without any.
        value: of the setting that is tuned: rho, or mu; None for the base.
        seed: of everything that is random.
        variant: "double" has twice the steps.
        lr: learning rate, where the study chose it; None is the one in its settings.
        more: further settings that are tuned, by name.
    """

    method: str
    value: float | None
    seed: int
    variant: str = "plain"
    lr: float | None = None
    more: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """What tables and progress lines call it."""
        if self.method == "base":
            return "base" if self.variant == "plain" else "base, 2× epochs"
        return parse(self.method).label

    @property
    def tunes(self) -> str:
        """The name of the setting that `value` is of; empty where a method of the user's own has none to tune."""
        return "lr" if self.method == "base" else parse(self.method).method.tunes

    @property
    def rho(self) -> float | None:
        """The radius, None where there is none."""
        return self.value if self.tunes == "rho" else None

    @property
    def trained(self) -> Run:
        """The training behind it: one whose averaged weights are judged trains as the method without."""
        if self.method == "base" or not (choice := parse(self.method)).averaged:
            return self
        return replace(self, method=choice.trained)

    def seen(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record of its training as its own: that of averaged weights has their figures, at the end and early.

        What else is measured there is of the last weights, and is left out.
        """
        average = None if self.method == "base" else parse(self.method).average
        if average is None or not record.get(FORMS[average]):
            return dict(record)
        choice, figures = parse(self.method), record[FORMS[average]]
        own = {"method": self.method, "label": self.label, "settings": choice.settings, **figures}
        own |= {"early": {"epoch": record.get("epochs"), **figures}, "sharpness": None, "slice": None}
        return {key: each for key, each in {**record, **own}.items() if key != "also"}

    def steps(self, spec: Spec, per_epoch: int) -> int:
        """How many optimizer steps it trains, where `per_epoch` make an epoch."""
        return spec.steps(per_epoch) * (2 if self.variant == "double" else 1)

    def tuned(self) -> dict[str, Any]:
        """What the record says about settings that the study chose: a radius under `rho`, others by name."""
        chosen: dict[str, Any] = {"rho": self.rho} | ({} if self.lr is None else {"lr": self.lr})
        chosen |= {"more": dict(self.more)} if self.more else {}
        if self.tunes in ("", "rho") or (self.method == "base" and self.lr is None):
            return chosen
        return {self.tunes: self.value, "tunes": self.tunes} | chosen

    def id(self, spec_hash: str) -> str:
        """A readable name that ends in a hash of everything that decides the result."""
        chosen: list[Any] = [] if self.lr is None else [self.lr]
        chosen += [self.more] if self.more else []
        chosen += [own] if (own := fingerprint(divided(self.method)[0])) else []
        decisive = short_hash([spec_hash, self.method, self.variant, self.value, self.seed, *chosen])
        method = re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.method)
        value = "" if self.value is None else f"-{self.tunes}{self.value:g}"
        lr = "" if self.lr is None else f"-lr{self.lr:g}"
        lr += "".join(f"-{name}{_plain(each)}" for name, each in self.more)
        double = "-double" if self.variant == "double" else ""
        return f"{method}{double}{value}{lr}-seed{self.seed}-{decisive}"


def describe(run: Run) -> str:
    """A run in a few words: `SAM rho=0.2 seed 1`."""
    value = "" if run.value is None or f"{run.tunes}=" in run.method else f" {run.tunes}={run.value:g}"
    lr = "" if run.lr is None else f" lr={run.lr:g}"
    lr += "".join(f" {name}={_plain(each)}" for name, each in run.more)
    return f"{run.label}{value}{lr} seed {run.seed}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
