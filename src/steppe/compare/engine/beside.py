"""Settings beside each other: what a task proposes, what of it holds beside what a user gave, and what contradicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steppe.compare.data import tasks

if TYPE_CHECKING:
    from steppe.compare.engine.spec import Spec


def proposed(first: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the task proposes, once it is known that there can be one; of a script its name, and methods."""
    if first.script is not None:
        return {"task": f"script:{first.script}", "methods": ["sam", "grst", "look_sam"]}  # which need no batch
    tasks.check_name(first.task)
    tasks.check_options(first.task, given)
    tasks.check_model(first.task, str(given.get("model", "")))
    return tasks.recipe_of(first.task, first.adapt)


_EITHER = (
    ("lr", "lr_grid"), ("epochs", "max_steps"), ("epochs", "epochs_grid"), ("max_steps", "epochs_grid"),
    ("labelled", "per_class"),
)  # fmt: skip
"""Settings of which a user gives one."""

_SETS_ASIDE = (*_EITHER, ("epochs_grid", "max_steps"))
"""What a user gives, and what a recipe may say instead, which goes. Any other way round what is given is stronger."""


def fitting(recipe: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe still holds beside what the user gave: `--lr` sets aside its grid of rates, and so on.

    Learning rates and decay were found for one optimizer: beside another they are that one's usual ones. So it is with
    radii that a recipe says for its own methods.
    """
    found = dict(recipe)
    for one, other in _SETS_ASIDE:
        if one in given:
            found.pop(other, None)
    if given.get("optimizer", found.get("optimizer")) != found.get("optimizer"):
        found.pop("lr_grid", None)
        found |= {"lr": tasks.USUAL_LR[given["optimizer"]]} if given["optimizer"] in tasks.USUAL_LR else {}
    if "methods" in found and given.get("methods", found["methods"]) != found["methods"]:
        found.pop("rho", None)
        found.pop("grow", None)
    if "lr_grid" not in found and "lr_grid" not in given:
        found.pop("tune_lr", None)
    return found


def check_together(spec: Spec, given: Mapping[str, Any]) -> None:
    """Refuse what would not be listened to because of another setting."""
    if spec.optimizer != "sgd" and "momentum" in given:
        raise ValueError(f"momentum belongs to the optimizer 'sgd'; leave it out with {spec.optimizer!r}")
    lora = next((name for name in given if name.startswith("lora_")), None)
    if spec.adapt == "full" and lora:
        raise ValueError(f"{lora} belongs to adapt = 'lora'; leave it out with 'full', which trains every weight")
    if spec.tune_lr == "each" and not spec.lr_grid:
        raise ValueError("tune_lr = 'each' has nothing to choose from; give learning rates too, as lr_grid")
    for one, other in _EITHER:
        if one in given and other in given:
            raise ValueError(f"{one} and {other} are both given; give one of them")
    if spec.max_steps and spec.epochs_grid:
        raise ValueError("the task's recipe has both max_steps and epochs_grid, which contradict each other")
