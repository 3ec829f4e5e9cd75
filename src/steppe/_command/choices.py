"""A method as a user names it: `look_sam:k=10,push=natural` -> recipe and settings, checked against its signature."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steppe._command.lookup import nearest
from steppe._length import of_this_length
from steppe.methods import METHODS, Method, get
from steppe.optim import AMSGrad

_GIVEN_BY_STUDY = ("model", "optimizer", "seed", "total_steps")
OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "amsgrad": AMSGrad}
"""What a study calls an optimizer -> what it is."""

_LR = inspect.Parameter("lr", inspect.Parameter.KEYWORD_ONLY, annotation="float", default=None)


@dataclass(frozen=True)
class Choice:
    """One method of a comparison.

    Args:
        text: canonical form, settings sorted by name; names the method in records and files.
        name: the registry's name.
        settings: arguments of the recipe that the user set, and `lr` of an optimizer that the method brings along.
    """

    text: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """What tables call it: the title, and the settings where there are any."""
        shown = ", ".join(f"{key}={value}" for key, value in sorted(self.settings.items()))
        title = METHODS[self.name].title
        return f"{title} ({shown})" if shown else title

    @property
    def method(self) -> Method:
        """The registry's row."""
        return METHODS[self.name]

    @property
    def lr(self) -> float | None:
        """The learning rate set for the optimizer that the method brings along."""
        return self.settings.get("lr") if self.method.optimizer else None

    @property
    def arguments(self) -> dict[str, Any]:
        """The settings that the recipe takes: all but the rate of the optimizer that it brings along."""
        return {key: each for key, each in self.settings.items() if key != "lr" or self.lr is None}

    def own_optimizer(self, weights: Iterable[Tensor], lr: float | None = None) -> Optimizer | None:
        """The optimizer that the method brings along, None where it brings none.

        Args:
            weights: what it gets.
            lr: its learning rate where the settings name none; None is the optimizer's own.
        """
        rate = lr if self.lr is None else self.lr
        own = self.method.optimizer
        return own and own(weights, **({} if rate is None else {"lr": rate}))

    def with_the_mean(self, where: str) -> Choice:
        """Itself, where only the mean loss of a batch is at hand.

        Raises:
            ValueError: the method needs one loss per example.
        """
        if self.method.per_sample:
            raise ValueError(
                f"method {self.text!r} needs a loss for each example, and {where} has their mean only; leave it out, "
                "or try it with `steppe compare` or a loop of your own"
            )
        return self

    def brings(self, optimizer: str) -> bool:
        """Whether it trains with an optimizer of its own: its paper's, unless the study's is of that kind already.

        Args:
            optimizer: the study's, a key of `OPTIMIZERS`.
        """
        own = self.method.optimizer
        return own is not None and (self.lr is not None or type(own([torch.zeros(1)])) is not OPTIMIZERS[optimizer])

    def grid(self, grids: Mapping[str, Sequence[float]]) -> list[float]:
        """The values of the tuned setting to try: the study's, radii in this method's units; or the one that is set.

        Args:
            grids: values by the name of the setting, "rho" and "mu".
        """
        tunes = self.method.tunes
        if tunes in self.settings:
            return [float(self.settings[tunes])]
        factor = self.method.rho_factor if tunes == "rho" else 1.0
        return [round(value * factor, 10) for value in grids[tunes]]

    def build(self, model: nn.Module, optimizer: Optimizer, *, value: float, seed: int, total_steps: int) -> Any:
        """The method on `model` and `optimizer`, a SharpnessAware or a BAR, with `value` of the setting it tunes."""
        recipe = self.method.recipe
        settings = {**self.arguments, self.method.tunes: value, "seed": seed}
        return of_this_length(recipe, total_steps, settings)(model, optimizer)


def split_list(text: str) -> list[str]:
    """The methods in `sam,look_sam:k=5,push=natural,rst`: a piece with `=` alone belongs to the method before it."""
    methods: list[str] = []
    for piece in filter(None, re.split(r"[,\s]+", text)):
        if "=" in piece and ":" not in piece and methods:
            methods[-1] += f",{piece}"
        else:
            methods.append(piece)
    return methods


def parse(text: str) -> Choice:
    """The method that `text` asks for.

    Raises:
        ValueError: unknown method, unknown or unreadable setting, or one the method cannot do without.
    """
    name, colon, rest = text.strip().partition(":")
    if name == "base":
        raise ValueError("the base always runs; leave 'base' out of the methods")
    get(name)
    if colon and not rest:
        raise ValueError(f"method {text!r} ends in ':'; write name or name:key=value,key=value")
    settings = dict(_setting(name, pair) for pair in rest.split(",")) if colon else {}
    _check_complete(name, settings)
    canonical = ",".join(f"{key}={value}" for key, value in sorted(settings.items()))
    return Choice(f"{name}:{canonical}" if canonical else name, name, settings)


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
    parameters = inspect.signature(METHODS[name].recipe).parameters
    own = {key: each for key, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
    own |= {"lr": _LR} if METHODS[name].optimizer else {}
    return {key: each for key, each in own.items() if key not in _GIVEN_BY_STUDY}


def _setting(name: str, pair: str) -> tuple[str, Any]:
    key, equals, text = (part.strip() for part in pair.partition("="))
    if not (key and equals and text):
        raise ValueError(f"method {name!r}: {pair!r} is no setting; write name:key=value,key=value")
    known = settings_of(name)
    if key in _GIVEN_BY_STUDY:
        raise ValueError(f"method {name!r}: {key!r} is set by the study itself; leave it out")
    if key not in known:
        raise ValueError(f"method {name!r} has no setting {key!r}; {nearest(key, known)}")
    return key, _value(name, key, text, str(known[key].annotation))


def _value(name: str, key: str, text: str, annotation: str) -> Any:
    """`text` read as the recipe's annotation asks: numbers where numbers are wanted, otherwise the words themselves."""
    for wanted, read in (("int", int), ("float|Value", float)):
        try:
            if re.search(rf"\b({wanted})\b", annotation):
                return read(text)
        except ValueError:
            continue
    if "str" in annotation:
        return text
    raise ValueError(f"method {name!r}: {key} = {text!r} is not {_expected(annotation)}")


def _expected(annotation: str) -> str:
    return "a number" if re.search(r"\b(float|Value)\b", annotation) else "a whole number"


def _check_complete(name: str, settings: dict[str, Any]) -> None:
    for key, parameter in settings_of(name).items():
        if parameter.default is parameter.empty and key not in settings and key != METHODS[name].tunes:
            raise ValueError(f"method {name!r} needs {key!r}; write {name}:{key}=...")
