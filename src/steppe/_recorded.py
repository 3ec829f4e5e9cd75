"""A look recorded once as a CUDA graph and replayed: one launch in the place of the thousand of its kernels.

On a fast GPU a pass over a few samples takes as long as the host needs to launch it. A recording knows the kernels and
the addresses that they read and write, and none of the Python between them: so looks of a kind are told apart by all
that Python may have read, as far as it can be seen, and one of a new kind runs as it is.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steppe._batch import Work
from steppe._gradients import Gradients
from steppe._guards import forget_derived
from steppe._likeness import Kind, Modules, all_read_by, kind_of, leaves
from steppe._nested import KEEP, mapped
from steppe._parameters import parallel
from steppe._randomness import Randomness
from steppe._state import Watch

EAGER = 3
"""So many looks of a kind run as they are before one is recorded; in them everything else is found out about them."""

KINDS = 4
"""So many kinds are remembered."""

PATIENCE = 50
"""So many looks in a row that were none of a recorded kind are told of."""


class _Present(threading.local):
    """What runs at present."""

    recording = False


_present = _Present()


def in_recording() -> bool:
    """Whether what runs is only being recorded: no pass of a step, for those who count them."""
    return _present.recording


class _Look:
    """What is known of the looks of one kind."""

    def __init__(self, kind: Kind) -> None:
        self.kind, self.seen = kind, 0
        self.recording: Recording | None = None


@dataclass
class Recording:
    """A recorded pass over a batch of its own.

    Attributes:
        again: runs it. inputs: the tensors of its batch. loss, grads: what it leaves, of which parameter each.
    """

    again: Callable[[], Any]
    inputs: list[Tensor]
    loss: Tensor
    grads: list[tuple[nn.Parameter, Tensor]]

    @torch.no_grad()
    def replay(self, batch: Any) -> Tensor:
        """The loss of this batch; its gradients are added to ``.grad``."""
        torch._foreach_copy_(self.inputs, [part for part in leaves(batch) if isinstance(part, Tensor)])
        self.again()
        if there := [(p.grad, grad) for p, grad in self.grads if p.grad is not None]:
            torch._foreach_add_([g for g, _ in there], [grad for _, grad in there])
        if new := [(p, grad) for p, grad in self.grads if p.grad is None]:
            copies = [torch.empty_like(p) for p, _ in new]  # the next replay writes over what this one leaves
            torch._foreach_copy_(copies, [grad for _, grad in new])
            for (param, _), copy in zip(new, copies, strict=True):
                param.grad = copy
        return self.loss.clone().reshape(())


class Recorder:
    """Runs looks, and records those whose kind comes again.

    Args:
        model: as it was given, with its wrappers.
        gradients: whose parameters. watch: knows the model's state. draws: where the generators stand.

    Attributes:
        told: functions that are given the batch of every look that is replayed.
    """

    def __init__(self, model: nn.Module, gradients: Gradients, watch: Watch, draws: Callable[[], Randomness]) -> None:
        self._model, self._gradients, self._watch, self._draws = model, gradients, watch, draws
        self.told: list[Callable[[Any], Any]] = []
        self._looks: list[_Look] = []
        self._modules = Modules()
        self._eager, self._warned, self._differs = 0, False, ""

    def run(self, work: Work) -> Tensor:
        """What ``work.run()`` does and returns, without the host's own backward where it is replayed."""
        looks = self._of(work)
        if any(look.seen < EAGER for look in looks):
            return self._run_eagerly(work, looks)
        for look, (batch,) in zip(looks, work.batches, strict=True):
            if look.recording is None:
                look.recording = self._record(work, batch)
        self._eager = 0
        losses = [look.recording.replay(b) for look, (b,) in zip(looks, work.batches, strict=True) if look.recording]
        for tell in self.told:
            for (batch,) in work.batches:
                tell(batch)
        return functools.reduce(torch.add, losses)

    def _of(self, work: Work) -> list[_Look]:
        """What is known of the look at each batch."""
        read = all_read_by(work.asked)
        held, places = self._modules.hold([self._model, *(each for each in read if isinstance(each, nn.Module))])
        return [self._known(kind_of(read, held, places, batch), batch) for (batch,) in work.batches]

    def _known(self, kind: Kind, batch: Any) -> _Look:
        for at, look in enumerate(self._looks):
            if not (differs := look.kind.differs(kind)):
                self._looks.insert(0, self._looks.pop(at))
                return look
            self._differs = differs
        self._refuse(batch)
        look = _Look(kind)
        self._looks = [look, *self._looks[: KINDS - 1]]
        return look

    def _refuse(self, batch: Any) -> None:
        """Refuse what cannot be recorded."""
        params = self._gradients.parameters
        if params.sharded or parallel(self._model) is not None:
            raise ValueError(
                "cuda_graph=True was given with a model that several processes train, which exchange gradients within "
                "a backward; expected it on one process alone"
            )
        every = [*params.all, *(part for part in leaves(batch) if isinstance(part, Tensor))]
        if elsewhere := {str(t.device) for t in every if not recordable(t)}:
            raise ValueError(
                f"cuda_graph=True was given, and weights or tensors of the batch lie on {', '.join(sorted(elsewhere))};"
                " expected all of them on a CUDA device when backward(loss_of, batch) is called: elsewhere leave it "
                'out, as cuda_graph=device.type == "cuda" does'
            )

    def _run_eagerly(self, work: Work, looks: list[_Look]) -> Tensor:
        """As it is; says it where nothing comes again."""
        host = of_the_host()
        loss = work.run()
        if not host.stand():
            raise ValueError(
                "cuda_graph=True was given, and the loss function draws from a generator of the host (Python's, "
                "NumPy's, torch's of the CPU), of which a recording would have one draw for ever; expected what is "
                "drawn in the batch, or drawn on the device"
            )
        if work.backward is not None and float(work.scale) > 1:
            raise ValueError(
                "cuda_graph=True was given with a loss scale (a GradScaler), which a recorded look does not have, so "
                "that gradients in float16 would be lost; expected torch.bfloat16, or a look without it"
            )
        for look in looks:
            look.seen += 1
        self._eager += 1
        if self._eager == PATIENCE and not self._warned:
            self._warned = True
            warnings.warn(
                f"{PATIENCE} looks with cuda_graph=True were none of a recorded kind, and ran as without it, because "
                f"{self._differs} was another each time; expected what changes in the batch: backward(loss_of, batch)",
                stacklevel=8,
            )
        return loss

    def _record(self, work: Work, batch: Any) -> Recording:
        own = mapped(batch, lambda part, _: _copy(part) if isinstance(part, Tensor) else KEEP)
        params = [p for p in self._gradients.parameters.all if p.requires_grad]
        state, generators = self._watch.start(), self._draws()

        def run() -> tuple[Tensor, tuple[Tensor | None, ...]]:
            loss = work.loss((own,))
            return loss.detach(), torch.autograd.grad(loss, params, allow_unused=True)

        def back() -> None:
            forget_derived()  # a cast made before would be read for ever, and one made within by others
            state.back()
            generators.set()

        _present.recording = True
        try:
            (loss, grads), again = captured(run, back)
        except RuntimeError as error:
            raise RuntimeError(
                f"the look could not be recorded as a CUDA graph ({str(error).splitlines()[0]}); expected a loss that "
                "never waits for the device (.item(), .cpu(), print) and whose shapes do not depend on values, or a "
                "look without cuda_graph=True"
            ) from error
        finally:
            _present.recording = False
            back()
        kept = [(p, grad) for p, grad in zip(params, grads, strict=True) if grad is not None]
        return Recording(again, [part for part in leaves(own) if isinstance(part, Tensor)], loss, kept)

    def __getstate__(self) -> dict[str, Any]:
        """Copies record anew, and tell nobody."""
        return vars(self) | {"_looks": [], "_modules": Modules(), "told": []}


def recordable(tensor: Tensor) -> bool:
    """Whether it lies where graphs can be recorded."""
    return tensor.device.type == "cuda"


def of_the_host() -> Randomness:
    """Generators that a recording does not draw from."""
    return Randomness(())


def captured(run: Callable[[], Any], back: Callable[[], None]) -> tuple[Any, Callable[[], Any]]:
    """What ``run`` returns, in memory that every call of the function beside it fills anew.

    ``back`` undoes what a run has moved: one runs before, as libraries set themselves up in it.
    """
    back()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), _no_waiting():
        run()
    torch.cuda.current_stream().wait_stream(stream)
    back()
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may go on: one pins the memory of the batches to come.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = run()
    except BaseException:
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())  # else it takes itself for recorded from now on
        raise
    return out, graph.replay


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Whatever waits for the device is an error: within a recording it would leave more behind than an error."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode", category=UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
