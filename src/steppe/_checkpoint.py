"""A SharpnessAware object as plain data, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steppe._algebra import as_real
from steppe._changes import Change, changes, plain_changes, tell
from steppe._parts import Part, check_choice, check_count, decode, encode
from steppe._rounding import ROUNDINGS
from steppe._shards import laid_out_like
from steppe._tree import by_parameter
from steppe._wiring import part_or_default
from steppe.ascent import Ascent
from steppe.combine import Combine
from steppe.schedule import Schedule
from steppe.views import Look

if TYPE_CHECKING:
    from steppe.gradient import SharpnessAware

FORMAT = 1
PARTS: dict[str, Any] = {"ascent": Ascent, "schedule": Schedule, "combine": Combine}
_LATER = ("chosen",)
"""Settings of the passes that 0.1.0 lacks: written only where they are set."""
_KEYS = {"format", "step", "seed", "same_dropout", "rounding", "memory", *PARTS}


def pack(sharp: SharpnessAware) -> dict[str, Any]:
    """The state as nested dicts. Memory is never written in place, so its tensors need no copy."""
    settings = {name: encode(getattr(sharp, name)) for name in PARTS}
    over = {name: value for name, value in _over(sharp).items() if name not in _LATER or value is not None}
    settings["ascent"] |= {name: encode(value) for name, value in over.items()}
    position = {"format": FORMAT, "step": sharp.step, "seed": sharp.seed}
    switches = {"same_dropout": sharp.same_dropout, "rounding": sharp.rounding}
    if sharp.select is not None:  # only then, so that files of 0.1 and those without a selection are alike
        settings["select"] = encode(sharp.select)
    return position | switches | settings | {"memory": _merged(_blank(sharp, torch.detach), sharp.memory)}


def _over(sharp: SharpnessAware) -> dict[str, Any]:
    """What its passes are over; since 0.1.0 it lies among the settings of the ascent."""
    look = {field.name: getattr(sharp.look, field.name, None) for field in dataclasses.fields(Look)}
    return look | {"hardest": sharp.hardest}


def _blank(sharp: SharpnessAware, like: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Memory of the shape it will have: a sharded checkpoint is loaded into a state that is there already.

    ``like`` makes of a parameter what stands for it.
    """
    params: dict[str, Tensor] = {
        e.name: like(as_real(e.param)) for e in sharp._parameters.entries if e.param.requires_grad
    }
    moved = {
        e.name: params[e.name]
        for e in sharp._parameters.entries
        if sharp._parameters.perturbable(e) and e.name in params
    }
    memory = {
        "ascent": sharp.ascent.direction.blank(moved),
        "schedule": sharp.schedule.blank(),
        "combine": sharp.combine.blank(params),
        "select": sharp._selection.blank(),
    }
    return {name: blank for name, blank in memory.items() if blank}


def _weightless(param: Tensor) -> Tensor:
    return torch.empty(param.shape, dtype=param.dtype, device="meta")


def _merged(blank: Any, memory: Any) -> Any:
    if not isinstance(blank, dict) or not isinstance(memory, dict):
        return memory
    return {k: _merged(blank.get(k), memory[k]) if k in memory else blank[k] for k in [*blank, *memory]}


def unpack(sharp: SharpnessAware, state: dict[str, Any]) -> None:
    """Take position and memory from a state; nothing is changed unless all of it fits.

    The settings stay those of ``sharp``; where they are not the state's, a warning says so, and another method's state
    is refused.
    """
    if not isinstance(state, dict) or set(state) - {"select"} != _KEYS or state["format"] != FORMAT:
        raise ValueError(
            "this is not the state of a steppe.SharpnessAware (format 1): pass what its state_dict() returned"
        )
    check_count("step", state["step"], 0)
    check_count("seed", abs(state["seed"]) if isinstance(state["seed"], int) else state["seed"], 0)
    check_choice("rounding", state["rounding"], ROUNDINGS)
    changed = list(_changes(sharp, state))
    params, blank = {e.name: as_real(e.param) for e in sharp._parameters.entries}, _blank(sharp, _weightless)
    memory = {part: _on_parameters(v, blank.get(part), params) for part, v in _dict(state["memory"]).items()}
    sharp._selection.check_memory(memory.get("select", {}))
    sharp.step, sharp.memory = state["step"], memory
    tell(changed)


def _changes(sharp: SharpnessAware, state: dict[str, Any]) -> Iterator[Change]:
    over, ascent = _over(sharp), dict(_dict(state["ascent"]))
    for name, now in over.items():
        yield from changes(name, decode(ascent.pop(name, None), now), now, sharp.hosts_length)
    for name in PARTS:
        now, saved = getattr(sharp, name), ascent if name == "ascent" else state[name]
        yield from changes(name, _part(name, saved, now), now, sharp.hosts_length)
    yield from changes("select", decode(state.get("select"), sharp.select), sharp.select)
    yield from plain_changes(state, vars(sharp), ("seed", "same_dropout", "rounding"))


def _part(name: str, saved: Any, current: Part) -> Any:
    part = decode(_dict(saved), current)
    return part_or_default(name, part, PARTS[name], PARTS[name])


def _dict(saved: Any) -> dict[str, Any]:
    if not isinstance(saved, dict):
        raise ValueError(f"the state holds {saved!r} where a dict is expected: pass what state_dict() returned")
    return saved


def _on_parameters(value: Any, blank: Any, params: Mapping[str, Tensor]) -> Any:
    """A copy of the memory with every tensor on its parameter's device, and spread as that is.

    Args:
        value: nested dicts and tensors.
        blank: the memory that means the same as none; one without any name that is known here shows by it what it is.
        params: those that are here.
    """
    if isinstance(value, dict):
        within = blank if isinstance(blank, dict) else {}
        if by_parameter(value, params) or by_parameter(within, params):
            return {name: _on_parameter(name, v, params) for name, v in value.items()}
        return {k: _on_parameters(v, within.get(k), params) for k, v in value.items()}
    return value.to(next(iter(params.values())).device, copy=True) if isinstance(value, Tensor) else value


def _on_parameter(name: str, value: Any, params: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    param, value = params.get(name), as_real(value)  # 0.1.0 kept complex memory as it was
    if param is not None and value.ndim == 0 < param.ndim:  # one number for each parameter
        return value.to(param.device, copy=True)
    if param is None or param.shape != value.shape:
        has = "no such parameter" if param is None else f"it has shape {tuple(param.shape)} here"
        raise ValueError(
            f"the state holds memory of shape {tuple(value.shape)} for {name!r}, but {has}: "
            "load it into the model it was saved from"
        )
    return laid_out_like(value, param)
