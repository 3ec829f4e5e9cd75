"""The pass that only looks for the direction of ascent, made cheaper: few samples, a view of the batch, fewer bits.

The descent sees the batch itself. A view of your own is any function from a batch to a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from steppe._nested import KEEP, cut, mapped, tensors_of
from steppe._parts import Part, check, check_choice


@dataclass(frozen=True)
class Look(Part):
    """A pass of its own for the direction of ascent, cheaper than one over the batch: ``SharpnessAware(look=...)``.

    Args:
        samples: of only the first ``samples`` of each batch (a whole number, or a fraction in (0, 1)); needs
            ``backward(loss_of, batch)``. Cost 1 + samples/batch passes instead of 2. After Bahri et al. (arXiv
            2110.08529).
        view: of a cheaper view of the batch, or of its samples: :class:`Resolution` (smaller images), :class:`Length`
            (shorter sequences), or any function from a batch to a batch.
        autocast: ``torch.bfloat16`` or ``torch.float16``: under autocast of the weights' device.
        chosen: which ``samples``: None the first, ``"hardest"`` those of the highest loss at w (K-SAM, arXiv
            2210.12864). ``loss_of`` must then return one loss per sample; a forward pass without a graph finds them,
            another third of a pass, with the dropout masks of the pass over the batch. ``backward`` returns its loss,
            and the running statistics that stay are those that it left.
        cuda_graph: record the look as a CUDA graph and replay it: one launch in the place of some thousand, which are
            what it costs on a fast GPU. The first three looks of a kind run as they are, and so do those whose shapes,
            weights' places, modules' attributes, or what the function closes over or names are another than in any
            recording; a warning tells where that never ends. A recorded look runs kernels alone: no Python of the loss
            or of hooks, and no backward of the host's. Needs ``backward(loss_of, batch)``, everything on one CUDA
            device, one process, and no loss scale. Memory between steps: one buffer of the trained weights' size, and
            the look's activations. Who counts what goes through is told by ``sharp.replays.append(function_of_batch)``.

    A combination that needs g costs one pass more. With one that does not, the loss that ``backward`` returns is the
    look's, and running statistics move in the pass at w + eps. A look whose gradient is NaN or inf (a mean over no
    label) climbs nowhere: the step is the base's, and the loss that is returned the whole batch's. One that is zero
    climbs nowhere either: a loss that compares the samples of its batch (contrastive) has none on a single sample. What
    overflowed under a loss scale is left to the scaler, which skips the step.

    Raises:
        TypeError, ValueError: a setting is out of its range, or none is given.
    """

    samples: int | float | None = None
    view: Callable[[Any], Any] | None = None
    autocast: torch.dtype | None = None
    chosen: str | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        """Check types and ranges."""
        _check_samples(self.samples)
        if self.chosen is not None:
            check_choice("chosen", self.chosen, ("hardest",))
            if self.samples is None:
                raise ValueError(f"chosen={self.chosen!r} was given without samples; expected how many are chosen")
        if self.view is not None and not callable(self.view):
            raise TypeError(
                f"view={self.view!r} was given; expected a function from a batch to a cheaper one, such as "
                "steppe.views.Resolution(0.5), or None"
            )
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast={self.autocast!r} was given; expected torch.bfloat16, torch.float16 or None")
        _check_graph(self.cuda_graph, self)
        if self.samples is None and self.view is None and self.autocast is None:
            raise ValueError(
                "Look() was given, which is a whole pass; expected samples, view or autocast to make it cheaper, or no "
                "look: the clean pass then gives the direction"
            )


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
            left): a look in which no label is left has no direction.
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


def _check_samples(samples: Any) -> None:
    if samples is None or (isinstance(samples, float) and 0 < samples < 1):
        return
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(
            f"samples={samples!r} was given; expected a whole number of samples, a fraction between 0 and 1, or None"
        )


def _check_graph(cuda_graph: Any, look: Look) -> None:
    if not isinstance(cuda_graph, bool):
        raise TypeError(f"cuda_graph={cuda_graph!r} was given; expected True or False")
    if cuda_graph and (look.chosen is not None or look.autocast is torch.float16):
        with_it = f"chosen={look.chosen!r}" if look.chosen is not None else f"autocast={look.autocast}"
        raise ValueError(
            f"cuda_graph=True was given with {with_it}; expected it with the first samples, and torch.bfloat16: a "
            "recording chooses no samples, and has no loss scale"
        )


def check_recorded(look: Look | None) -> None:
    """Refuse a recording where no device could make one."""
    if look is not None and look.cuda_graph and not available():
        raise ValueError(
            f"look={look!r} was given, and this torch sees no CUDA device; expected cuda_graph=False here, as "
            "cuda_graph=torch.cuda.is_available() gives"
        )


def available() -> bool:
    """Whether graphs can be recorded at all."""
    return torch.cuda.is_available()


def _check_share(name: str, value: Any) -> None:
    check(name, value, 0.0, 1.0)
    if value == 0:
        raise ValueError(f"{name}=0 was given; expected a number above 0, as nothing would be left to look at")
