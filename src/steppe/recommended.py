"""The default to begin with: what the suite of tasks found (benchmarks/suite.py)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from steppe._optimizers import Given
from steppe._parts import Value, check, check_count
from steppe.curves import Linear
from steppe.gradient import SharpnessAware
from steppe.methods.rst import RST


def recommended(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.4,
    p: float = 1.0,
    samples: int | float | None = None,
    ramp: float = 0.0,
    total_steps: int | None = None,
    cuda_graph: bool = False,
    **common: Any,
) -> SharpnessAware:
    """A cheap SAM to begin with: it climbs along the gradient of few samples, and descends along that of all.

    At step t:  eps = rho v / ||v||, with v the gradient at w of the first ``samples`` of the batch, and d = g~, the
    gradient of the whole batch at w + eps. With p < 1 that is so with probability p, drawn from (seed, t), and d = g on
    the other steps. It is :func:`steppe.RST` with few samples, ``rst:p=1,samples=0.04`` for ``steppe compare``.

    Call it with the batch, so that it can be sliced: ``sharp.backward(loss_of, batch)``. The batch must be in random
    order, as a shuffled loader's is. The loss that ``backward`` returns is the look's, of few samples, on the steps
    that ascend; ``sharp.last.perturbed_loss`` is the whole batch's, at w + eps. A loss that compares the samples of its
    batch (contrastive, with the batch as negatives) is another one on few, and none on one: give it more ``samples``.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: rho, Euclidean radius: in the suite few samples took one to four times SAM's, an MLP on MNIST-1D sixteen
            times; 0.1 to 3.2. Tune it from 0.2 up, or take what :func:`steppe.find_rho` proposes.
        p: share of the steps that ascend, in [0, 1]. Less where a step is a few ms, and a pass over few samples takes
            nearly as long as one over all; a quarter kept little of the gain in the suite, or none.
        samples: how many of the batch, or a share of it. None: 0.04, one in 25; four if the model has batch
            normalisation, whose statistics need several.
        ramp: share of ``total_steps``, in [0, 1], over which rho rises from 0 in a straight line, in whole steps. On
            MNIST-1D, at one length and rate, 0.1 broke no training at twice the radius that broke some without; where
            each chose these, it gained no more (docs/suite.md). A ``rho`` of a parameter group's own is taken as it is,
            and does not rise.
        total_steps: T, optimizer steps of the whole training; needed with a ramp alone.
        cuda_graph: record the pass over few samples and replay it, on a GPU (:class:`steppe.Look`).
        common: ``seed``, ``same_dropout`` and the others of :class:`steppe.SharpnessAware`.

    Cost: 1 + p samples/batch passes, 1.04 by default; one parameter-sized buffer while perturbed. Time: a step's is 1.1
    times the base's with the suite's forecaster on a CPU, up to 2 with its smallest networks (docs/suite.md); on a fast
    GPU 1.5 to 2.1 times, as one sample launches as many kernels as the batch, and with ``cuda_graph`` 1.1 to 1.2 times
    (docs/cost.md).
    The rule was chosen on tasks of the suite (docs/suite.md), which says where it gains, clearly with an MLP on
    MNIST-1D, and where not.

    Raises:
        TypeError, ValueError: as :func:`steppe.RST`.

    Source: SAM (arXiv 2010.01412) with the ascent on a part of the batch (arXiv 2110.08529), on all steps or, as RST
    (arXiv 2203.09962), on some.
    """
    if samples is None and isinstance(model, nn.Module):  # what is none is refused below
        samples = 4 if any(isinstance(module, _BatchNorm) for module in model.modules()) else 0.04
    radius = _rising(rho, ramp, total_steps)
    return RST(model, optimizer, rho=radius, p=p, samples=samples, cuda_graph=cuda_graph, **common)


def _rising(rho: Value, ramp: float, total_steps: int | None) -> Value:
    """rho itself, or the curve that rises to it."""
    check("ramp", ramp, 0.0, 1.0)
    if not ramp:
        return rho
    if total_steps is None:
        raise ValueError(f"ramp={ramp!r} was given; expected total_steps, the optimizer steps of the training, with it")
    check_count("total_steps", total_steps)
    check("rho", rho, 0.0, why="a curve of its own needs no ramp")
    return Linear(0.0, rho, max(1, round(ramp * total_steps)))  # type: ignore[arg-type]  # a number, as checked
