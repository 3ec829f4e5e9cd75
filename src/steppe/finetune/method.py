"""A method as a user names it, as a factory that the Trainer calls when it has its optimizer."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from steppe._command.choices import BASE, parse
from steppe._length import of_this_length
from steppe.protocol import Method, checked


def check(text: str) -> str:
    """The canonical form of a method's text: "base" for the plain optimizer, else as `steppe compare` takes it."""
    return BASE if text.strip() == BASE else parse(text).with_the_mean("the Trainer").text


def label(text: str, full: bool) -> str:
    """What a table calls it: "LoRA" or "full fine-tuning" for the base, "LoRA-SAM" for SAM on the factors."""
    if text == BASE:
        return "full fine-tuning" if full else "LoRA"
    choice = parse(text)
    return choice.label if full or choice.method.lora else f"LoRA-{choice.label}"


def on_factors(text: str) -> bool:
    """Whether it acts on LoRA's factors alone."""
    return text != BASE and parse(text).method.lora


def factory(text: str, seed: int, measure: bool = False) -> Any:
    """``(model, optimizer, total_steps) -> steppe.Method``; None for the base.

    What is not set is the recipe's own (rho, mu); random decisions follow ``seed``. With ``measure``, the length of the
    perturbation is known after every step, for a log.
    """
    if text == BASE:
        return None
    choice = parse(text)
    made = functools.partial(choice.method.recipe, **choice.arguments, **choice.seeded(seed))
    return _measuring(made) if measure else made


def _measuring(recipe: Any) -> Any:
    @functools.wraps(recipe)
    def build(*args: Any, **settings: Any) -> Any:
        built = recipe(*args, **settings)
        if hasattr(built, "measure"):
            built.measure = True
        return built

    return build


def optimizer_of(text: str, model: nn.Module, training: dict[str, Any]) -> Optimizer | None:
    """The base optimizer that the method's paper brings along, or None for the Trainer's.

    Its learning rate is the one in the method's text (``adasam:lr=1e-3``), else the Trainer's argument; its weight
    decay is the Trainer's argument.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    made = None if text == BASE else parse(text).own_optimizer(weights, training["learning_rate"])
    for group in made.param_groups if made else ():
        group["weight_decay"] = training["weight_decay"]
    return made


def _stand_in(model: nn.Module, training: dict[str, Any]) -> Optimizer:
    """An optimizer as cheap as can be, with momentum where the Trainer's will have it, which some methods read."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    bare = training["optim"] == "sgd" and "momentum" not in (training.get("optim_args") or "")
    return torch.optim.SGD(weights, lr=training["learning_rate"], momentum=0.0 if bare else 0.9)


def rehearse(text: str, model: nn.Module, training: dict[str, Any]) -> Method | None:
    """Build the method once on an optimizer that nobody uses, so that what does not fit is refused before training.

    It comes back to be looked at; None for the base.
    """
    made = factory(text, 0)
    if made is None:
        return None
    rate = training["learning_rate"]
    optimizer = optimizer_of(text, model, training) or _stand_in(model, training)
    try:
        built: Method = checked(of_this_length(made, 1000)(model, optimizer), "its recipe gives", "the Trainer")
    except (ValueError, TypeError) as error:
        raise ValueError(f"method {text!r}: {error}") from error
    most = built.needs.rate_below
    if most is not None and rate >= most:
        raise ValueError(
            f"method {text!r} needs a learning rate below {most:g}, got {rate:g}: BAR multiplies a factor by "
            "1 - mu * rate, which is to stay above 0; lower mu or the learning rate"
        )
    return built


def fit_processes(text: str, built: Method | None, arguments: Any) -> None:
    """Let several processes expect no gradient of what a method leaves out of a step.

    The Trainer has them wait for every gradient where activations are checkpointed, unless it is told otherwise.
    """
    if arguments.world_size == 1 or built is None or not built.needs.parts:
        return
    why = f"method {text!r} trains a part of the weights in each step, and several processes "
    if arguments.ddp_find_unused_parameters is False:
        raise ValueError(
            f"{why}would wait for the others' gradients with ddp_find_unused_parameters=False; leave it out"
        )
    if arguments.ddp_static_graph:
        raise ValueError(f"{why}would take the first step's part for every step's with ddp_static_graph; leave it out")
    if _reentrant(arguments):
        raise ValueError(
            f"{why}cannot share a reentrant checkpoint of the activations; leave use_reentrant out, or set it to false"
        )
    arguments.ddp_find_unused_parameters = True


def _reentrant(arguments: Any) -> bool:
    """Under either of the names that the Trainer has had for it."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    on = any(getattr(arguments, name, None) for name in names)
    return on and any((getattr(arguments, f"{name}_kwargs", None) or {}).get("use_reentrant") for name in names)
