"""Balancedness of pairs: B = 1/2 (||x||^2 - ||y||^2), and a probe that follows it over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steppe._algebra import norm_each
from steppe._optimizers import Given, Optimizers
from steppe._parts import check_count
from steppe._steps import Steps
from steppe.lora.pairs import Pair, Rule, find_pairs


def side_norms(tensors: Sequence[Tensor], sides: int) -> Tensor:
    """Frobenius norms of ``sides`` sides, each of equally many tensors that follow one another; shape (sides,)."""
    norms = torch.stack(norm_each(tensors))
    return norms if len(tensors) == sides else torch.linalg.vector_norm(norms.view(sides, -1), dim=1)


@torch.no_grad()
def balancedness(pairs: Sequence[Pair]) -> Tensor:
    """B of every pair, shape (pairs,), on the device of the first."""
    sides = [side for p in pairs for side in (p.x, p.y)]
    norms = norm_each([t for side in sides for t in side])
    squares = torch.stack([n.to(norms[0]) for n in norms]).square()
    if len(norms) > len(sides):
        squares = torch.stack([part.sum() for part in squares.split([len(side) for side in sides])])
    x, y = squares.view(-1, 2).unbind(1)
    return (x - y) / 2


class Balancedness:
    """Follows the balancedness of every pair over training; nothing waits for the device until it is read.

        probe = steppe.lora.Balancedness(model, optimizer=optimizer, every=10)
        ...                                   # train as ever
        probe.values()                        # {"layers.0.q_proj.default": [0.31, 0.30, ...], ...}

    Args:
        model: whose pairs.
        pairs: which, as :class:`steppe.BAR` takes them; LoRA's trainable factors by default.
        optimizer: record by itself after its real steps (one, or a list of several); None: call :meth:`record` where
            you like.
        every: record after each so many steps of ``optimizer``, and once at the start.

    Cost: the norm of every factor and one small tensor per record.

    Raises:
        ValueError: the model holds no such pair.
    """

    def __init__(
        self, model: nn.Module, pairs: Rule | None = None, *, optimizer: Given | None = None, every: int = 1
    ) -> None:
        check_count("every", every)
        self.pairs = find_pairs(model, pairs)
        self.every, self._seen = every, 0
        self._steps: list[int] = []
        self._records: list[Tensor] = []
        self._hearing: Steps | None = None
        if optimizer is not None:
            self.record(0)
            self._hearing = Steps(self, Optimizers(optimizer), keep=True)

    def _before_step(self, which: int, args: Any, kwargs: dict[str, Any]) -> None:
        pass

    _awaits_step = False  # nothing of a gradient is kept for the step

    def _after_step(self, which: int, skipped: Tensor | bool) -> None:
        assert self._hearing is not None
        if bool(skipped) or not self._hearing.stepped(which)[0]:
            return
        self._seen += 1
        if self._seen % self.every == 0:
            self.record(self._seen)

    def record(self, step: int | None = None) -> None:
        """Note every pair's present balancedness, under ``step`` (by default the number of the record)."""
        self._steps.append(len(self._steps) if step is None else step)
        self._records.append(balancedness(self.pairs))

    def steps(self) -> list[int]:
        """The step of each record."""
        return list(self._steps)

    def values(self) -> dict[str, list[float]]:
        """The records of each pair (waits for the device)."""
        columns = torch.stack(self._records, dim=1).tolist() if self._records else [[] for _ in self.pairs]
        return {p.name: column for p, column in zip(self.pairs, columns, strict=True)}

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for a JSON file: ``{"steps": [...], "pairs": {name: [...]}}``."""
        return {"steps": self.steps(), "pairs": self.values()}

    def plot(self, axes: Any = None) -> Any:
        """Draw a line for each pair into ``axes`` (matplotlib; new ones by default) and return them."""
        if axes is None:
            import matplotlib.pyplot as plt

            axes = plt.subplots()[1]
        for name, values in self.values().items():
            axes.plot(self._steps, values, label=name)
        axes.axhline(0.0, color="0.7", linewidth=0.8)
        axes.set_xlabel("step")
        axes.set_ylabel("balancedness")
        return axes

    def remove(self) -> None:
        """Stop recording by itself; the records stay."""
        if self._hearing is not None:
            self._hearing.remove()
