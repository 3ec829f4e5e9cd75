"""The default to begin with: what the search for the front found (benchmarks/front.py)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.gradient import SharpnessAware
from steppe.methods.rst import RST


def recommended(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.2,
    p: float = 0.25,
    samples: int | float | None = None,
    **common: Any,
) -> SharpnessAware:
    """A cheap SAM to begin with: on a random quarter of the steps, climbing along the gradient of few samples.

    At step t, with probability p:  eps = rho v / ||v||, with v the gradient at w of the first ``samples`` of the batch,
    and d = g~, the gradient of the whole batch at w + eps. Otherwise d = g. Which steps is drawn from (seed, t). It is
    :func:`steppe.RST` with few samples, ``rst:p=0.25,samples=1`` for ``steppe compare``.

    Call it with the batch, so that it can be sliced: ``sharp.backward(loss_of, batch)``. The batch must be in random
    order, as a shuffled loader's is.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, Euclidean radius in SAM's units; 0.1 to 0.4 in our search, or what :func:`steppe.find_rho` proposes.
        p: share of the steps that ascend, in [0, 1]. 1 where a step takes long (above some 50 ms): a pass over one
            sample then costs next to nothing.
        samples: how many of the batch, or a share of it. None: one; four if the model has batch normalisation, which
            cannot normalise a vector over a single sample.
        common: ``seed``, ``same_dropout`` and the others of :class:`steppe.SharpnessAware`.

    Cost: 1 + p samples/batch passes; one parameter-sized buffer while perturbed. A pass over one sample is not free on
    small models: measured 1.08 to 1.17 times the base on steps below 6 ms, 1.04 on one of 23 ms (docs/choosing.md).
    It was found by a search over small image tasks and is reported on the same ones: try it beside SAM on your own.

    Raises:
        TypeError, ValueError: as :func:`steppe.RST`.

    Source: RST (arXiv 2203.09962) with the ascent of m-sharpness (arXiv 2010.01412); the combination is steppe's.
    """
    if samples is None and isinstance(model, nn.Module):  # what is none is refused below
        samples = 4 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1
    return RST(model, optimizer, rho=rho, p=p, samples=samples, **common)
