"""How balanced the pairs of LoRA's factors are, as they stand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from steppe._algebra import norm
from steppe.diagnostics._picture import new_axes
from steppe.lora.pairs import Rule, find_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class PairBalance:
    """One pair (x, y).

    Attributes:
        name: where it is in the model.
        x: ||x||, of LoRA's A. y: ||y||, of B.
        balancedness: B = 1/2 (||x||^2 - ||y||^2).
        relative: (||x||^2 - ||y||^2) / (||x||^2 + ||y||^2): 0 balanced, 1 and -1 one side alone.
    """

    name: str
    x: float
    y: float
    balancedness: float
    relative: float


@dataclass(frozen=True)
class Balance:
    """What :func:`balance` found: every pair, in the model's order."""

    pairs: tuple[PairBalance, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, words, lists and dicts, for JSON."""
        return asdict(self)

    def plot(self, axes: Axes | None = None, label: str | None = None) -> Axes:
        """The relative balancedness by the number of the pair. Needs matplotlib (``steppe[study]``)."""
        axes = new_axes() if axes is None else axes
        axes.plot([pair.relative for pair in self.pairs], "o-", markersize=3, linewidth=0.8, label=label)
        axes.axhline(0.0, color="0.7", linewidth=0.8)
        axes.set(xlabel="pair, in the model's order", ylabel="B / ((||x||² + ||y||²) / 2)", ylim=(-1.05, 1.05))
        if label:
            axes.legend()
        return axes


def balance(model: nn.Module, pairs: Rule | None = None) -> Balance:
    """The balancedness of every pair of factors as they stand; over training: :class:`steppe.lora.Balancedness`.

    Args:
        model: only read.
        pairs: which, as :class:`steppe.BAR` takes them; LoRA's trainable factors by default.

    Raises:
        ValueError: the model holds no such pair.
    """
    return Balance(tuple(_of(pair.name, pair.x, pair.y) for pair in find_pairs(model, pairs)))


def _of(name: str, x: Any, y: Any) -> PairBalance:
    a, b = (float(norm([t.detach().double() for t in side])) for side in (x, y))
    whole = a * a + b * b
    return PairBalance(name, a, b, (a * a - b * b) / 2, (a * a - b * b) / whole if whole else 0.0)
