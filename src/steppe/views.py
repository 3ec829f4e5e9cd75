"""Cheaper views of a batch, for the pass that only looks for the direction of ascent: ``Ascent(view=...)``.

The descent sees the batch itself. A view of your own is any function from a batch to a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from steppe._nested import KEEP, cut, mapped, tensors_of
from steppe._parts import Part, check, check_choice


class View(Part):
    """Base of views."""

    exchangeable: ClassVar[bool] = True

    def __call__(self, batch: Any) -> Any:
        """A cheaper batch; the one that is given is not written on."""
        raise NotImplementedError


@dataclass(frozen=True)
class Resolution(View):
    """Images at ``scale`` times their height and width (0 < scale <= 1), each pixel the mean of those it stands for.

    Every floating-point tensor of four dimensions (samples, channels, height, width) is an image. The model must take
    other sizes than its own (global pooling does, fixed positional embeddings do not). Cost of the look: about
    scale^2 passes.
    """

    scale: float = 0.5

    def __post_init__(self) -> None:
        """Check the range."""
        _check_share("scale", self.scale)

    def __call__(self, batch: Any) -> Any:
        """The batch with smaller images."""
        if not any(map(_is_image, tensors_of(batch))):
            raise TypeError(
                "Resolution found no floating-point tensor of four dimensions (samples, channels, height, width) in "
                "the batch; expected images, or another view"
            )
        return mapped(batch, lambda part, _: self._small(part) if _is_image(part) else KEEP)

    def _small(self, images: Tensor) -> Tensor:
        height, width = (max(1, round(self.scale * n)) for n in images.shape[2:])
        return nn.functional.interpolate(images, (height, width), mode="area")


@dataclass(frozen=True)
class Length(View):
    """Sequences cut to ``share`` of their positions (0 < share <= 1).

    The number of positions is the second dimension of the first integer tensor that has one (``input_ids``); every
    tensor of the batch is cut where it has as many: tokens, labels, masks, rows of packed sequences and their offsets.

    Args:
        share: of the positions that are kept, at least one. Cost of the look: about ``share`` passes.
        keep: ``"start"`` or ``"end"``. With a loss on the answers alone, which come last, keep the end (padding on the
            left): a look in which no label is left has no direction and, as a mean over nothing, may be NaN.
    """

    share: float = 0.5
    keep: str = "start"

    def __post_init__(self) -> None:
        """Check the ranges."""
        _check_share("share", self.share)
        check_choice("keep", self.keep, ("start", "end"))

    def __call__(self, batch: Any) -> Any:
        """The batch with shorter sequences."""
        rows = [t for t in tensors_of(batch) if t.ndim > 1 and not t.is_floating_point()]
        if not rows:
            raise TypeError(
                "Length found no integer tensor of two dimensions (samples, positions) in the batch; expected tokens, "
                "or another view"
            )
        total = rows[0].shape[1]
        return cut(batch, total, max(1, round(self.share * total)), self.keep == "end")


def _is_image(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 4 and part.is_floating_point()


def _check_share(name: str, value: Any) -> None:
    check(name, value, 0.0, 1.0)
    if value == 0:
        raise ValueError(f"{name}=0 was given; expected a number above 0, as nothing would be left to look at")
