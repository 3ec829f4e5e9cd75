"""A SharpnessAware object as plain data, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from steppe._algebra import as_real
from steppe._parts import Part, check_choice, check_count, decode, encode
from steppe._rounding import ROUNDINGS
from steppe._settings import Change, changes, plain_changes, tell
from steppe._shards import laid_out_like
from steppe._wiring import part_or_default
from steppe.ascent import Ascent
from steppe.combine import Combine
from steppe.schedule import Schedule

if TYPE_CHECKING:
    from steppe.gradient import SharpnessAware

FORMAT = 1
PARTS: dict[str, Any] = {"ascent": Ascent, "schedule": Schedule, "combine": Combine}
_KEYS = {"format", "step", "seed", "same_dropout", "rounding", "memory", *PARTS}


def pack(sharp: SharpnessAware) -> dict[str, Any]:
    """The state as nested dicts. Memory is never written in place, so its tensors need no copy."""
    settings = {name: encode(getattr(sharp, name)) for name in PARTS}
    position = {"format": FORMAT, "step": sharp.step, "seed": sharp.seed}
    switches = {"same_dropout": sharp.same_dropout, "rounding": sharp.rounding}
    if sharp.select is not None:  # only then, so that files of 0.1 and those without a selection are alike
        settings["select"] = encode(sharp.select)
    return position | switches | settings | {"memory": _merged(_blank(sharp), sharp.memory)}


def _blank(sharp: SharpnessAware) -> dict[str, Any]:
    """Memory of the shape it will have: a sharded checkpoint is loaded into a state that is there already."""
    params: dict[str, Tensor] = {
        e.name: as_real(e.param.detach()) for e in sharp._parameters.entries if e.param.requires_grad
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
    memory = _on_parameters(_dict(state["memory"]), {e.name: as_real(e.param) for e in sharp._parameters.entries}, [])
    sharp._selection.check_memory(memory.get("select", {}))
    sharp.step, sharp.memory = state["step"], memory
    tell(changed)


def _changes(sharp: SharpnessAware, state: dict[str, Any]) -> Iterator[Change]:
    for name in PARTS:
        now = getattr(sharp, name)
        yield from changes(name, _part(name, state[name], now), now, sharp.hosts_length)
    yield from changes("select", decode(state.get("select"), sharp.select), sharp.select)
    yield from plain_changes(state, vars(sharp), ("seed", "same_dropout", "rounding"))


def _part(name: str, saved: Any, current: Part) -> Any:
    part = decode(_dict(saved), current)
    return part_or_default(name, part, PARTS[name], PARTS[name])


def _dict(saved: Any) -> dict[str, Any]:
    if not isinstance(saved, dict):
        raise ValueError(f"the state holds {saved!r} where a dict is expected: pass what state_dict() returned")
    return saved


_PER_PARAMETER = ("average", "g_v", "previous")


def _on_parameters(value: Any, params: Mapping[str, Tensor], path: list[str]) -> Any:
    """A copy of the memory with every tensor on its parameter's device."""
    if isinstance(value, dict):
        return {k: _on_parameters(v, params, [*path, k]) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    if len(path) < 2 or path[-2] not in _PER_PARAMETER:
        return value.to(next(iter(params.values())).device, copy=True)
    param, value = params.get(path[-1]), as_real(value)  # 0.1.0 kept complex memory as it was
    if param is None or param.shape != value.shape:
        has = "no such parameter" if param is None else f"it has shape {tuple(param.shape)} here"
        raise ValueError(
            f"the state holds memory of shape {tuple(value.shape)} for {path[-1]!r}, but {has}: "
            "load it into the model it was saved from"
        )
    return laid_out_like(value, param)
