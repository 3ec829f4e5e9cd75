"""A selection at work: what is not selected requires no gradient during the passes, and the norms are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steppe._algebra import joined, norm_each
from steppe._guards import forget_derived
from steppe._parameters import Entry, Parameters, parallel
from steppe._sync import Averaging
from steppe.ascent import Ascent, Grads, Scale
from steppe.select import Memory, Select, Sparse

_NO_GRAPH = "does not require grad and does not have a grad_fn"  # torch's words for a backward without a graph
_LEFT_OUT = "One of the differentiated Tensors does not require grad"  # and for a derivative by what requires none


class Selection:
    """Applies a :class:`steppe.select.Select` to the parameters; does nothing at all where there is none."""

    def __init__(self, select: Select | None, parameters: Parameters) -> None:
        if select is not None and not isinstance(select, Select):
            raise TypeError(f"select={select!r} was given; expected a steppe Select part such as {Sparse()!r}, or None")
        self.select, self._parameters = select, parameters
        self._units: list[str] = []
        self._active: set[str] = set()

    def check(self, model: nn.Module, ascent: Ascent, averaging: Averaging) -> None:
        """Refuse what cannot go with a selection."""
        if self.select is None:
            return
        if ascent.direction.ahead:
            raise ValueError(
                f"select={self.select!r} was given with {ascent.direction!r}; expected a direction made of this step's "
                "gradient, such as Gradient(), because the selection learns from its norms"
            )
        wrapper = parallel(model)
        if wrapper is not None and (averaging.puts_off or not wrapper.find_unused_parameters or wrapper.static_graph):
            raise ValueError(
                "select=... was given with DistributedDataParallel, which waits for every gradient; expected "
                "DistributedDataParallel(..., find_unused_parameters=True), no static graph, and sync='global'"
            )
        if self._parameters.sharded:
            raise ValueError(
                "select=... was given with a model sharded by FSDP2, whose gathered weights cannot be switched off one "
                "by one; expected a model in one piece, or DistributedDataParallel(..., find_unused_parameters=True)"
            )

    def units(self) -> dict[str, list[Entry]]:
        """Unit -> its trainable parameters, of those in the optimizer, in the model's order."""
        assert self.select is not None
        units: dict[str, list[Entry]] = {}
        for entry in self._parameters.entries:
            if entry.group is not None and entry.param.requires_grad:
                units.setdefault(self.select.unit(entry.name), []).append(entry)
        return units

    def held(self, step: int, seed: int, memory: dict[str, Any]) -> AbstractContextManager[None]:
        """The passes of one ``backward``: only what is active requires a gradient."""
        return nullcontext() if self.select is None else self._held(self.select, step, seed, memory)

    @contextmanager
    def _held(self, select: Select, step: int, seed: int, memory: dict[str, Any]) -> Iterator[None]:
        units = self.units()
        self._units = list(units)
        self._active = select.active(step, seed, self._units, memory.get("select", {}))
        try:
            with _switched_off([e.param for u in units if u not in self._active for e in units[u]]):
                yield
        except RuntimeError as error:
            if _NO_GRAPH not in str(error):
                raise
            raise RuntimeError(
                f"none of the selected {sorted(self._active)[:3]} takes part in the loss, which leaves a backward of "
                "yours without a graph; freeze what the loss does not use, or leave it out of the optimizer"
            ) from error

    def rooted(self, loss_of: Callable[..., Any]) -> Callable[..., Any]:
        """``loss_of``, with a graph even where nothing that is active takes part in the loss."""
        if self.select is None or not callable(loss_of):
            return loss_of

        def rooted(*arguments: Any) -> Any:
            try:
                loss = loss_of(*arguments)
            except RuntimeError as error:
                self._explain(error)
                raise
            has_graph = not isinstance(loss, Tensor) or loss.requires_grad
            if has_graph or not torch.is_grad_enabled() or len(self._active) == len(self._units):
                return loss
            warnings.warn(
                f"none of the selected {sorted(self._active)[:3]} takes part in the loss, so a pass moved nothing; "
                "freeze what the loss does not use, and do not detach it",
                stacklevel=4,
            )
            return loss + torch.zeros_like(loss, requires_grad=True)

        return rooted

    def _explain(self, error: RuntimeError) -> None:
        """Raise what an error means where a loss took a derivative of its own."""
        if _LEFT_OUT not in str(error):
            return
        raise RuntimeError(
            "the loss takes a derivative of its own with respect to parameters that this step leaves out "
            f"({self.select!r} chose {len(self._active)} of {len(self._units)}); expected one with respect to those "
            "that require a gradient, or to the inputs, or a method that is about all parameters"
        ) from error

    def norms_of(self, grads: Grads, scale: Scale) -> Memory:
        """What the step under construction keeps of its first pass: the active units' norms, on their way to the host.

        An active unit without a gradient has norm 0.
        """
        if self.select is None:
            return {}
        norms: dict[str, list[Tensor]] = {u: [] for u in self._units if u in self._active}
        for name, value in zip(grads, norm_each(list(grads.values())), strict=True):
            if (unit := self.select.unit(name)) in norms:
                norms[unit].append(value)
        found = {u: joined(n) for u, n in norms.items() if n}
        silent = [u for u in norms if u not in found]
        return {"seen": _Seen(self._units, list(found), silent, _Reading(list(found.values()), scale))}

    def learned(self, draft: Memory, memory: Memory) -> Memory:
        """The memory of a real step: what was seen in it, made probabilities."""
        seen = draft.get("select", {}).get("seen")
        if self.select is None or seen is None:
            return draft
        return draft | {"select": self.select.learn(seen.norms(), seen.units, memory.get("select", {}))}

    def check_memory(self, memory: Memory) -> None:
        """Refuse a state's memory of other units than there are here."""
        if self.select is None or not memory:
            return
        expected = self.blank()
        if any(isinstance(v, dict) and v.keys() != memory.get(k, {}).keys() for k, v in expected.items()):
            raise ValueError(
                f"the state's selection is of other units than those of {self.select!r} here; load it with the select "
                "and into the model it was saved from"
            )

    def blank(self) -> Memory:
        """The memory that means the same as none."""
        return {} if self.select is None else self.select.blank(list(self.units()))


@dataclass
class _Seen:
    """First-pass norms of one step; ``silent`` units were active and got no gradient."""

    units: Sequence[str]
    heard: Sequence[str]
    silent: Sequence[str]
    reading: _Reading

    def norms(self) -> dict[str, float]:
        return dict(zip(self.heard, self.reading.numbers(), strict=True)) | dict.fromkeys(self.silent, 0.0)


class _Reading:
    """Numbers on their way to the host: copied beside the passes, and waited for when they are asked for."""

    def __init__(self, values: list[Tensor], scale: Scale) -> None:
        self._event: torch.cuda.Event | None = None
        if not values:
            self._here = torch.zeros(0)
            return
        here = torch.stack([v.to(values[0].device, torch.float64, non_blocking=True) for v in values])
        here = here / (scale.to(here.device) if isinstance(scale, Tensor) else scale)
        if here.is_cuda:
            self._here = torch.empty_like(here, device="cpu", pin_memory=True)
            self._here.copy_(here, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(here.device))
        else:
            self._here = here

    def numbers(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return [float(x) for x in self._here.tolist()]


@contextmanager
def _switched_off(params: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradient for these; on an error, what was in ``.grad`` is there again."""
    before = [p.grad for p in params]

    def on() -> None:
        for param in params:
            param.requires_grad_(True)
        forget_derived()  # casts of weights that required no gradient then

    try:
        for param in params:
            param.requires_grad_(False)
            param.grad = None
        yield
    except BaseException:
        for param, grad in zip(params, before, strict=True):
            param.grad = grad
        raise
    finally:
        try:
            on()
        finally:  # again, when Ctrl-C falls into it
            on()
