"""What was given as the optimizer, one or several, wrapped or not, seen as one: its groups, and who really steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

Given = Optimizer | list[Optimizer] | tuple[Optimizer, ...]
Door = tuple[Callable[[Any], RemovableHandle], str]


@dataclass(frozen=True)
class Stepper:
    """An optimizer whose steps are the real ones.

    Attributes:
        optimizer: itself. above: what is wrapped around it, the outermost first (Lookahead, accelerate's, Fabric's).
    """

    optimizer: Optimizer
    above: tuple[Optimizer, ...] = ()

    @property
    def name(self) -> str:
        """Its class, for sentences."""
        return type(self.optimizer).__name__

    @property
    def layers(self) -> tuple[Optimizer, ...]:
        """The wrappers and itself."""
        return (*self.above, self.optimizer)

    def attribute(self, name: str) -> Any:
        """What a GradScaler put on it or on a wrapper; None where it did not."""
        if not self.above:
            return vars(self.optimizer).get(name)
        return next((v for layer in self.layers[::-1] if (v := vars(layer).get(name)) is not None), None)

    def state_of(self, param: Tensor) -> dict[str, Any]:
        """Its own state of a parameter, or a wrapper's."""
        for layer in self.layers[::-1]:
            if found := getattr(layer, "state", {}).get(param):
                return dict(found)
        return {}

    def climbs(self, group: dict[str, Any]) -> bool:
        """Whether it goes up the gradient it is given: ``maximize`` in the group, or of the class; twice is down."""
        own = group.get("maximize", vars(self.optimizer).get("maximize", False))
        if not self.above:
            return bool(own)
        return (bool(own) + sum(bool(vars(layer).get("maximize", False)) for layer in self.above)) % 2 == 1


class Optimizers:
    """One optimizer or several, as one.

    Args:
        given: an optimizer, or a list or tuple of some.

    Raises:
        TypeError: one of them is no optimizer, or its steps cannot be heard.
        ValueError: a parameter is in two of them.
    """

    def __init__(self, given: Given) -> None:
        self.given = given
        self.each = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        _check_kinds(given, self.each)
        self.steppers = tuple(s for one in self.each for s in _beneath(one))
        self._check_apart()
        self._own_rho = [_has_own_rho(s.optimizer) for s in self.steppers]

    @property
    def name(self) -> str:
        """What was given, for sentences: its class, or the classes of several."""
        return " and ".join(type(one).__name__ for one in self.each)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, as those that step have them."""
        if len(self.steppers) == 1:
            return self.steppers[0].optimizer.param_groups
        return [g for s in self.steppers for g in _groups(s.optimizer)]

    @property
    def asking(self) -> list[dict[str, Any]]:
        """The groups as they ask for radii: a ``rho`` of the optimizer's class (Adadelta's decay) asks for none."""
        if not any(self._own_rho):
            return self.param_groups
        own = [mine for s, mine in zip(self.steppers, self._own_rho, strict=True) for _ in _groups(s.optimizer)]
        return [g | {"rho": None} if mine else g for g, mine in zip(self.param_groups, own, strict=True)]

    @property
    def state(self) -> Any:
        """Every parameter's state, to be looked up with ``get``."""
        one = self.steppers[0]
        return one.optimizer.state if len(self.steppers) == 1 and not one.above else States(self)

    def owners(self) -> list[int]:
        """The number of each group's optimizer, in the order of the groups."""
        return [i for i, s in enumerate(self.steppers) for _ in _groups(s.optimizer)]

    def climbing(self) -> list[bool]:
        """Of each group, whether its optimizer goes up the gradient."""
        return [s.climbs(g) for s in self.steppers for g in _groups(s.optimizer)]

    def params(self) -> set[Tensor]:
        """Every parameter that is stepped."""
        return {p for s in self.steppers for p in _params(s.optimizer)}

    def doors(self) -> list[Door]:
        """Where a save, a load or a wrapper's step can be refused."""
        found: list[Door] = []
        for layer in dict.fromkeys(layer for s in self.steppers for layer in s.layers):
            if "_optimizer_state_dict_pre_hooks" in vars(layer):
                found.append((layer.register_state_dict_pre_hook, "save the optimizer"))
                found.append((layer.register_load_state_dict_pre_hook, "load the optimizer"))
        wrappers = dict.fromkeys(layer for s in self.steppers for layer in s.above if _heard(layer))
        return found + [(w.register_step_pre_hook, "step the optimizer") for w in wrappers]

    def _check_apart(self) -> None:
        seen: set[int] = set()
        for stepper in self.steppers:
            mine = {id(p) for p in _params(stepper.optimizer)}
            if mine & seen:
                raise ValueError(
                    f"{len(mine & seen)} parameter(s) are in two of the optimizers given, the second a {stepper.name}; "
                    "expected each parameter in one of them"
                )
            seen |= mine


class States:
    """The states of several optimizers, looked up by parameter."""

    def __init__(self, optimizers: Optimizers) -> None:
        self._steppers = optimizers.steppers

    def get(self, param: Tensor, default: Any = None) -> Any:
        """The state of a parameter; ``default`` where there is none."""
        return next((found for s in self._steppers if (found := s.state_of(param))), default)


def real(optimizer: Any) -> list[Optimizer]:
    """The optimizers whose steps are the real ones."""
    return [s.optimizer for s in Optimizers(optimizer).steppers]


def _check_kinds(given: Any, each: tuple[Any, ...]) -> None:
    if not each:
        raise TypeError(f"optimizer={given!r} was given; expected at least one torch.optim.Optimizer that is built")
    for one in each:
        if not isinstance(one, Optimizer):
            kind = type(one).__name__ if one is given else f"{type(given).__name__} of {type(one).__name__}"
            raise TypeError(
                f"optimizer is of class {kind}; expected a torch.optim.Optimizer that is built, or a list of them"
            )


def _beneath(optimizer: Optimizer, above: tuple[Optimizer, ...] = ()) -> Iterator[Stepper]:
    """Who really steps: the optimizers inside where their groups are the wrapper's own, else itself, if it is heard.

    A wrapper may leave out the inner step (accumulation, a loss scaler) and add to it (Lookahead); ZeRO copies its
    groups into those of the optimizer inside, so that its own are the ones to read.
    """
    inside = [o for o in _held(optimizer) if o not in above]
    mine, theirs = {id(p) for p in _params(optimizer)}, {id(p) for o in inside for p in _params(o)}
    shared = {id(g) for g in _groups(optimizer)} & {id(g) for o in inside for g in _groups(o)}
    covered = bool(mine) and mine <= theirs
    if _heard(optimizer) and not (covered and shared):
        yield Stepper(optimizer, above)
    elif covered:
        for one in inside:
            yield from _beneath(one, (*above, optimizer))
    else:
        raise TypeError(
            f"optimizer is of class {type(optimizer).__name__}, whose step nobody can hear: it never called "
            "Optimizer.__init__, and no optimizer that it holds steps all of its parameters; expected one that does, "
            "or a wrapper around one"
        )


def _has_own_rho(optimizer: Optimizer) -> bool:
    """Whether ``rho`` in its groups is a setting of its class."""
    return any("rho" in getattr(each, "defaults", {}) for each in (optimizer, *_held(optimizer)))


def _heard(optimizer: Optimizer) -> bool:
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return all(name in vars(optimizer) for name in hooks) and bool(getattr(type(optimizer).step, "hooked", False))


def _held(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers among the attributes, also in a list, a tuple or a dict of them."""
    found: list[Optimizer] = []
    for value in vars(optimizer).values():
        several: Iterable[Any] = (value,)
        if isinstance(value, (list, tuple)):
            several = value
        elif isinstance(value, dict) and value and all(isinstance(v, Optimizer) for v in value.values()):
            several = value.values()
        found += [v for v in several if isinstance(v, Optimizer) and v is not optimizer and v not in found]
    return found


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = getattr(optimizer, "param_groups", [])
    return groups


def _params(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for g in _groups(optimizer) for p in g["params"])
