"""What a script says came of its training: returned once, or yielded after every epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import GeneratorType
from typing import Any

from steppe._command.lookup import nearest
from steppe._words import an
from steppe.compare.analysis.scripted import UNNAMED
from steppe.compare.data.metrics import METRICS, read_metric
from steppe.compare.judge import Judge
from steppe.compare.script.sharpen import Sharpen
from steppe.compare.script.source import Script, ScriptError

PARTS = ("val", "test")
EXPECTED = "expected {'val': ..., 'test': ...}, each a number or several by name ({'accuracy': .93, 'nll': .2})"


def judge_for(metric: str | None, names: list[str]) -> Judge:
    """The judge of a script whose figures have these names; the first of them where the user names none."""
    if metric is not None:
        judge = read_metric(metric)
    elif names == [UNNAMED]:
        judge = Judge(UNNAMED, UNNAMED, percent=False)
    elif names[0] in METRICS:
        judge = METRICS[names[0]].judge
    else:
        raise ScriptError(
            f"which way is better is not known of {names[0]!r}; say it with --metric {names[0]}:higher or "
            f"--metric {names[0]}:lower"
        )
    if judge.name not in names:
        raise ScriptError(f"there is no figure {judge.name!r}, which --metric asks for; {nearest(judge.name, names)}")
    return judge


@dataclass
class Figures:
    """The figures of one run, as the script gives them, look by look."""

    script: Script
    sharpen: Sharpen
    metric: str | None
    noted: list[dict[str, float]] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    yielded: bool = False
    judge: Judge = field(default_factory=Judge)

    def follow(self, given: Any) -> None:
        """Take down everything that the function returns or yields.

        Raises:
            ScriptError: it is not what is expected, or the method had no part in the training.
        """
        if isinstance(given, GeneratorType):
            self.yielded = True
            given = self._all(given)
            if given is None and self.noted:
                return
        self.sharpen.check()
        if given is None:
            nothing = "yielded" if self.yielded else "returned"
            raise ScriptError(f"{self.script.reference} {nothing} nothing; {EXPECTED}")
        self.add(given, "returned")

    def _all(self, looks: GeneratorType[Any, None, Any]) -> Any:
        """Every look as it comes; what the generator returns at its end."""
        while True:
            try:
                given = next(looks)
            except StopIteration as end:
                return end.value
            try:
                self.sharpen.check()
                self.add(given, "yielded")
            except ScriptError as error:
                line = looks.gi_frame.f_lineno if looks.gi_frame else looks.gi_code.co_firstlineno
                raise PlacedError(f"{Path(looks.gi_code.co_filename).name}:{line}: {error}") from None

    def averaged(self) -> dict[str, dict[str, float]]:
        """The figures at each average of the weights, where the script says how a model is measured.

        Raises:
            ScriptError: what it gives is not what its looks are.
        """
        kept, measure = self.sharpen.averages, self.sharpen.measure
        if kept is None or measure is None:
            return {}
        return {name: self._figures(given, "measure gave") for name, given in kept.measured(measure).items()}

    def add(self, given: Any, how: str) -> None:
        """Take down one look."""
        loss = self.sharpen.mean_loss()
        found = self._figures(given, how)
        self._check_finite(found, loss)
        self.losses.append(loss)
        self.noted.append(found)

    def _figures(self, given: Any, how: str) -> dict[str, float]:
        """The figures of both parts by name, `val_accuracy` and so on."""
        if not isinstance(given, Mapping):
            raise ScriptError(f"{how} {_shown(given)}; {EXPECTED}")
        for part in PARTS:
            if part not in given:
                there = ", ".join(map(repr, given)) or "an empty dict"
                raise ScriptError(f"{how} no {part!r}, only {there}; {EXPECTED}")
        other = next((key for key in given if key not in PARTS), None)
        if other is not None:
            raise ScriptError(f"{how} {other!r} beside 'val' and 'test'; put it among the figures of both: {EXPECTED}")
        val, test = (self._numbers(given[part], part) for part in PARTS)
        self._check_names(list(val), list(test))
        if not self.noted:
            self.judge = judge_for(self.metric, list(val))
        self._check_share({"val": val[self.judge.name], "test": test[self.judge.name]})
        named = ((part, each) for part, each in zip(PARTS, (val, test), strict=True))
        return {f"{part}_{name}": value for part, each in named for name, value in each.items()}

    def _numbers(self, given: Any, part: str) -> dict[str, float]:
        """The figures of a part by name; a single one has the name that the user gave the metric."""
        if not isinstance(given, Mapping):
            given = {UNNAMED if self.metric is None else read_metric(self.metric).name: given}
        if not given:
            raise ScriptError(f"{part!r} is empty; {EXPECTED}")
        for name in given:
            if not (isinstance(name, str) and name.isidentifier()):
                raise ScriptError(f"{part!r} names a figure {name!r}; expected a name of letters, digits and _")
        return {name: _number(value, f"{part!r}, {name!r},") for name, value in given.items()}

    def _check_names(self, val: list[str], test: list[str]) -> None:
        """The same figures in both parts, at every look."""
        for names, others, part in ((val, test, "test"), (test, val, "val")):
            absent = next((name for name in names if name not in others), None)
            if absent is not None:
                raise ScriptError(f"{part!r} lacks {absent!r}, which the other part has; expected the same in both")
        first = self.noted[0] if self.noted else {}
        before = (key.removeprefix("val_") for key in first if key.startswith("val_"))
        absent = next((name for name in before if name not in val), None)
        if absent is not None:
            raise ScriptError(f"{absent!r} is missing in look {len(self.noted) + 1}; expected the same at every look")

    def _check_share(self, judged: Mapping[str, float]) -> None:
        """What is told in per cent is given as a share of one."""
        name = self.judge.name
        part = next((part for part, value in judged.items() if self.judge.oversized(value)), None)
        if part is not None:
            raise ScriptError(
                f"{name!r} of {part!r} is {judged[part]:g}, and is told in per cent of what is given; give "
                f"{judged[part] / 100:g}, or take it as it is with --metric {name}:higher"
            )

    def _check_finite(self, found: Mapping[str, float], loss: float | None) -> None:
        """A figure that is no number where the loss is one is a mistake; where the loss is none, training diverged."""
        bad = next((name for name in found if not math.isfinite(found[name])), None)
        if bad is not None and loss is not None and math.isfinite(loss):
            part, _, name = bad.partition("_")
            raise ScriptError(
                f"{name!r} of {part!r} is {found[bad]} in look {len(self.noted) + 1}, while the training loss is "
                f"{loss:.4g}; expected a finite number"
            )

    @property
    def best(self) -> int:
        """The look with the best validation figure; the earliest of equal ones."""
        ranks = [self.judge.rank(each[f"val_{self.judge.name}"]) for each in self.noted]
        return ranks.index(max(ranks))

    def early(self) -> dict[str, Any] | None:
        """Early stopping, where the figures were yielded: those of the best look on validation."""
        return {"epoch": self.best + 1} | self.noted[self.best] if self.yielded else None

    def curve(self) -> dict[str, list[Any]]:
        """The judging figure and the training loss, look by look."""
        found: dict[str, list[Any]] = {"epoch": list(range(1, len(self.noted) + 1))}
        if all(loss is not None for loss in self.losses):
            found["train_loss"] = self.losses
        return found | {
            f"{part}_{self.judge.name}": [each[f"{part}_{self.judge.name}"] for each in self.noted] for part in PARTS
        }


class PlacedError(ScriptError):
    """A refusal that says its place already."""


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ScriptError(f"{what} is {_shown(value)}; expected a number") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else an(type(value).__name__)
