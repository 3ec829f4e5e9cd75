"""A method as a user names it: `look_sam:k=10,push=natural` -> recipe and settings, checked against its signature.

A recipe of the user's own is `mymodule:MySAM` or `my.py:MySAM`, with settings `mymodule:MySAM:k=10`. Any method may be
judged by its averaged weights: `sam:average=ema`, `sam:average=lawa`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._command.lookup import nearest
from steppe._command.rows import accepts, divided, is_own, row
from steppe._length import of_this_length
from steppe._words import an
from steppe.methods import Row
from steppe.optim import AMSGrad
from steppe.protocol import needs_of

BASE = "base"
"""What stands for no method: the bare optimizer."""

_GIVEN_BY_STUDY = ("model", "optimizer", "seed", "total_steps")
OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "amsgrad": AMSGrad}
"""What a study calls an optimizer -> what it is."""

_TRUTH = {"True": True, "False": False, "true": True, "false": False}

_AVERAGE = "average"
AVERAGES = {"ema": "the exponential average of the weights", "lawa": "the mean of the latest epochs' weights"}
"""Averages of the weights by which any method may be judged."""
_LR = inspect.Parameter("lr", inspect.Parameter.KEYWORD_ONLY, annotation="float", default=None)


@dataclass(frozen=True)
class Choice:
    """One method of a comparison.

    Args:
        text: canonical form, settings sorted by name; names the method in records and files.
        name: the registry's name, or the reference to the user's recipe.
        settings: arguments of the recipe that the user set, `lr` of an optimizer that the method brings along, and
            `average`.
    """

    text: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """What tables call it: the title, and the settings where there are any."""
        shown = ", ".join(f"{key}={value}" for key, value in sorted(self.settings.items()))
        title = self.method.title
        return f"{title} ({shown})" if shown else title

    @property
    def method(self) -> Row:
        """The method's row."""
        return row(self.name)

    @property
    def lr(self) -> float | None:
        """The learning rate set for the optimizer that the method brings along."""
        return self.settings.get("lr") if self.method.optimizer else None

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings that the recipe takes: all but its own optimizer's rate and what weights are judged."""
        not_its = {_AVERAGE} if self.averaged else set()
        not_its |= {"lr"} if self.lr is not None else set()
        return {key: each for key, each in self.settings.items() if key not in not_its}

    @property
    def averaged(self) -> bool:
        """Whether its averaged weights are judged, instead of the last ones."""
        return self.average is not None

    @property
    def average(self) -> str | None:
        """Which average of its weights is judged, a key of `AVERAGES`; None: the last weights are."""
        found: str | None = self.settings.get(_AVERAGE)  # nearly always None, and asked many times
        if found is None or _AVERAGE in inspect.signature(self.method.recipe).parameters:
            return None
        return found

    @property
    def trained(self) -> str:
        """The text of the same method without that: it trains alike."""
        own = {key: each for key, each in self.settings.items() if key != _AVERAGE or not self.averaged}
        return _canonical(self.name, own)

    def own_optimizer(self, weights: Iterable[Tensor], lr: float | None = None) -> Optimizer | None:
        """The optimizer that the method brings along, None where it brings none; `lr` where the settings name none."""
        rate = lr if self.lr is None else self.lr
        own = self.method.optimizer
        return own and own(weights, **({} if rate is None else {"lr": rate}))

    def with_the_mean(self, where: str, made: Any = None) -> Choice:
        """Itself, where only the mean loss of a batch is at hand.

        Args:
            where: that is, for the sentence.
            made: what `build` gave: of a recipe of the user's own it alone tells what it needs.
        """
        if self.averaged:
            raise ValueError(
                f"method {self.text!r}: averaged weights are judged by `steppe compare` alone; leave out average"
            )
        if self.method.per_sample or needs_of(made).per_sample:
            raise ValueError(
                f"method {self.text!r} needs a loss for each example, and {where} has their mean only; leave it out, "
                "or try it with `steppe compare` or a loop of your own"
            )
        return self

    def brings(self, optimizer: str) -> bool:
        """Whether it trains with an optimizer of its own: its paper's, unless the study's is of that kind already."""
        own = self.method.optimizer
        return own is not None and (self.lr is not None or type(own([torch.zeros(1)])) is not OPTIMIZERS[optimizer])

    def grid(self, grids: Mapping[str, Sequence[float]]) -> list[float] | list[None]:
        """The values of the tuned setting to try: the study's, or its own radii; in its units; or the one that is set.

        None where the method has no setting that a study tunes.

        Args:
            grids: values by the name of the setting, "rho", "mu" and "sigma"; without "rho" each method has its own.
        """
        tunes = self.method.tunes
        if not tunes:
            return [None]
        if tunes in self.settings:
            return [float(self.settings[tunes])]
        factor = self.method.rho_factor if tunes == "rho" else 1.0
        return [round(value * factor, 10) for value in grids.get(tunes, self.method.radii)]

    def build(
        self, model: nn.Module, optimizer: Optimizer, *, value: float | None, seed: int, total_steps: int,
        more: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """The method on `model` and `optimizer`, with `value` of the setting it tunes, None for the recipe's own.

        A steppe.Method, or, from a recipe of the user's own, whatever has its `backward`. With `more` come
        further settings.
        """
        recipe = self.method.recipe
        given: dict[str, Any] = {} if value is None else {self.method.tunes: value}
        given |= self.arguments | self.seeded(seed) | dict(more or {})
        made = of_this_length(recipe, total_steps, given)(model, optimizer)
        if not callable(getattr(made, "backward", None)):
            raise ValueError(
                f"its recipe gives {an(type(made).__name__)}; expected a steppe.Method, or an object with "
                "backward(loss_of, batch)"
            )
        return made

    def takes(self, settings: Mapping[str, Any]) -> bool:
        """Whether the recipe can be built with these settings."""
        model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        optimizer = self.own_optimizer(model.parameters()) or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        own = self.method.tunes
        more = {key: each for key, each in settings.items() if key and key != own}
        try:
            self.build(model, optimizer, value=settings.get(own), seed=0, total_steps=10, more=more)
        except (TypeError, ValueError):
            return False
        return True

    def seeded(self, seed: int) -> dict[str, int]:
        """The seed as an argument, where the recipe takes one."""
        return {"seed": seed} if accepts(self.method.recipe, "seed") else {}


def split_list(text: str) -> list[str]:
    """The methods in `sam,look_sam:k=5,push=natural,rst`: a piece with `=` alone belongs to the method before it."""
    methods: list[str] = []
    for piece in filter(None, re.split(r"[,\s]+", text)):
        if "=" in piece and ":" not in piece and methods:
            methods[-1] += f",{piece}"
        else:
            methods.append(piece)
    return methods


@functools.lru_cache(maxsize=512)  # a plan asks for its methods again and again
def parse(text: str) -> Choice:
    """The method that `text` asks for."""
    name, rest = divided(text)
    if name == BASE:
        raise ValueError("the base always runs; leave 'base' out of the methods")
    row(name)
    if rest == "":
        raise ValueError(f"method {text!r} ends in ':'; write name or name:key=value,key=value")
    settings = dict(_setting(name, pair) for pair in rest.split(",")) if rest else {}
    _check_complete(name, settings)
    return Choice(_canonical(name, settings), name, settings)


def _canonical(name: str, settings: Mapping[str, Any]) -> str:
    text = ",".join(f"{key}={value}" for key, value in sorted(settings.items()))
    return f"{name}:{text}" if text else name


def parse_all(texts: Sequence[str]) -> list[Choice]:
    """The methods of a study, each once."""
    choices = [parse(piece) for text in texts for piece in split_list(text)]
    if not choices:
        raise ValueError("no method to compare; name at least one, such as --methods sam")
    seen: set[str] = set()
    for choice in choices:
        if choice.text in seen:
            raise ValueError(f"method {choice.text!r} is named twice; name each once")
        seen.add(choice.text)
    return choices


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of the recipe `name` that a user may set."""
    method = row(name)
    every = inspect.signature(method.recipe).parameters.items()
    own = {key: each for key, each in every if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)}
    own = dict(list(own.items())[2:]) if is_own(name) else own
    own |= {"lr": _LR} if method.optimizer else {}
    return {key: each for key, each in own.items() if key not in _GIVEN_BY_STUDY}


def _setting(name: str, pair: str) -> tuple[str, Any]:
    key, equals, text = (part.strip() for part in pair.partition("="))
    if not (key and equals and text):
        raise ValueError(f"method {name!r}: {pair!r} is no setting; write name:key=value,key=value")
    return key, read_setting(name, key, text)


def read_setting(name: str, key: str, text: str) -> Any:
    """What was typed for a setting of a method, as its recipe wants it."""
    known = settings_of(name)
    if key in _GIVEN_BY_STUDY:
        raise ValueError(f"method {name!r}: {key!r} is set by the study itself; leave it out")
    if key == _AVERAGE and key not in known:
        if text not in AVERAGES:
            known_here = " or ".join(f"{each!r}, {what}" for each, what in AVERAGES.items())
            raise ValueError(f"method {name!r}: average = {text!r} is not {known_here}")
        return text
    if key not in known and not (is_own(name) and accepts(row(name).recipe, key)):
        hint = nearest(key, known) if known else "it has none"
        raise ValueError(f"method {name!r} has no setting {key!r}; {hint}")
    if key not in known or known[key].annotation is inspect.Parameter.empty:
        return _guessed(text)
    said = known[key].annotation
    return _value(name, key, text, said.__name__ if isinstance(said, type) else str(said))


def _guessed(text: str) -> Any:
    """What was typed where nobody says what is wanted: a number or a truth value if it reads as one, else the word."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return _TRUTH.get(text, text)


def _value(name: str, key: str, text: str, annotation: str) -> Any:
    """`text` read as the recipe's annotation asks: numbers where numbers are wanted, otherwise the words themselves."""
    for wanted, read in (("bool", _TRUTH.__getitem__), ("int", int), ("float|Value", float)):
        try:
            if re.search(rf"\b({wanted})\b", annotation):
                return read(text)
        except (ValueError, KeyError):
            continue
    if "str" in annotation:
        return text
    raise ValueError(f"method {name!r}: {key} = {text!r} is not {_expected(annotation)}")


def _expected(annotation: str) -> str:
    if annotation == "bool":
        return "true or false"
    return "a number" if re.search(r"\b(float|Value)\b", annotation) else "a whole number"


def _check_complete(name: str, settings: dict[str, Any]) -> None:
    for key, parameter in settings_of(name).items():
        if parameter.default is parameter.empty and key not in settings and key != row(name).tunes:
            raise ValueError(f"method {name!r} needs {key!r}; write {name}:{key}=...")
