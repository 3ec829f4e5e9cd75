"""One run of a study: which method, at which values, with which seed; how it is called, and by what it is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from steppe._command.choices import BASE, Choice, parse
from steppe._command.rows import divided, fingerprint
from steppe.compare.analysis.groups import TRAINED
from steppe.compare.analysis.wording import plainly
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
        variant: "double" has twice the steps, "half" half of them.
        lr: learning rate, where the study chose it; None is the one in its settings.
        more: further settings that are tuned, by name.
        epochs: of the base or the method, where the study chose them; None is what its settings say.
    """

    method: str
    value: float | None
    seed: int
    variant: str = "plain"
    lr: float | None = None
    more: tuple[tuple[str, Any], ...] = ()
    epochs: int | None = None

    @property
    def choice(self) -> Choice | None:
        """The method, read; None for the base."""
        return None if self.method == BASE else parse(self.method)

    @property
    def label(self) -> str:
        """What tables and progress lines call it."""
        if self.choice is None:
            return BASE + TRAINED[self.variant]
        return self.choice.label

    @property
    def tunes(self) -> str:
        """The name of the setting that `value` is of; empty where a method of the user's own has none to tune."""
        return "lr" if self.choice is None else self.choice.method.tunes

    @property
    def rho(self) -> float | None:
        """The radius, None where there is none."""
        return self.value if self.tunes == "rho" else None

    @property
    def trained(self) -> Run:
        """The training behind it: one whose averaged weights are judged trains as the method without."""
        return replace(self, method=self.choice.trained) if self.choice and self.choice.averaged else self

    def seen(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The record of its training as its own: that of averaged weights has their figures, in whatever form is asked.

        What else is measured there is of the last weights, and is left out.
        """
        choice = self.choice
        figures = record.get(FORMS[choice.average]) if choice and choice.average else None
        if choice is None or not figures:
            return dict(record)
        own = {"method": self.method, "label": self.label, "settings": choice.settings, **figures}
        own |= {"early": {"epoch": record.get("epochs"), **figures}, "sharpness": None, "slice": None}
        own |= dict.fromkeys(FORMS.values(), figures)  # where an averaged base is the best, too
        return {key: each for key, each in {**record, **own}.items() if key != "also"}

    def steps(self, spec: Spec, per_epoch: int) -> int:
        """How many optimizer steps it trains, where `per_epoch` make an epoch."""
        steps = spec.steps(per_epoch, self.epochs)
        return {"double": 2 * steps, "half": max(1, steps // 2)}.get(self.variant, steps)

    def every(self, spec: Spec, per_epoch: int) -> int:
        """Steps between two looks at the validation part: about ten looks in a run of the chosen epochs."""
        return spec.every(per_epoch, self.epochs)

    def named(self) -> dict[str, Any]:
        """What the record begins with: which run it is of."""
        settings = self.choice.settings if self.choice else {}
        first = {"method": self.method, "label": self.label, "variant": self.variant, "seed": self.seed}
        return {**first, **self._tuned(), "settings": settings}

    def _tuned(self) -> dict[str, Any]:
        """What the record says about settings that the study chose: a radius under `rho`, others by name."""
        chosen: dict[str, Any] = {"rho": self.rho} | ({} if self.lr is None else {"lr": self.lr})
        chosen |= {"more": dict(self.more)} if self.more else {}
        chosen |= {} if self.epochs is None else {"chosen_epochs": self.epochs}
        if self.tunes in ("", "rho") or (self.choice is None and self.lr is None):
            return chosen
        return {self.tunes: self.value, "tunes": self.tunes} | chosen

    @property
    def beside(self) -> list[Any]:
        """What makes the run beside text and value, where there is such: further settings, the user's code, epochs."""
        own = fingerprint(divided(self.method)[0])
        found: list[Any] = ([self.more] if self.more else []) + ([own] if own else [])
        return found + ([] if self.epochs is None else [{"epochs": self.epochs}])

    def id(self, spec_hash: str) -> str:
        """A readable name that ends in a hash of everything that decides the result."""
        chosen: list[Any] = [] if self.lr is None else [self.lr]
        chosen += self.beside
        decisive = short_hash([spec_hash, self.method, self.variant, self.value, self.seed, *chosen])
        method = re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.method)
        value = "" if self.value is None else f"-{self.tunes}{self.value:g}"
        lr = "" if self.lr is None else f"-lr{self.lr:g}"
        lr += "".join(f"-{name}{plainly(each)}" for name, each in self.more)
        lr += "" if self.epochs is None else f"-epochs{self.epochs}"
        variant = "" if self.variant == "plain" else f"-{self.variant}"
        return f"{method}{variant}{value}{lr}-seed{self.seed}-{decisive}"


def describe(run: Run) -> str:
    """A run in a few words: `SAM rho=0.2 seed 1`."""
    value = "" if run.value is None or f"{run.tunes}=" in run.method else f" {run.tunes}={run.value:g}"
    lr = "" if run.lr is None else f" lr={run.lr:g}"
    lr += "".join(f" {name}={plainly(each)}" for name, each in run.more)
    if run.epochs is not None and run.variant == "plain":
        lr += f" epochs={run.epochs}"
    label = run.label if run.epochs is None else run.label.replace("× epochs", f"× {run.epochs} epochs")
    return f"{label}{value}{lr} seed {run.seed}"
