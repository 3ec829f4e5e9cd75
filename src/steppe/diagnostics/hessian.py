"""The Hessian of a model's own loss: its largest and smallest eigenvalue, its trace and its spectrum, by Lanczos.

Lanczos, quadrature and Hutch++ are those of hessian-eigenthings (``steppe[curvature]``) in float64; the products H v
are the model's own loss differentiated twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from steppe._parts import check_count
from steppe.diagnostics._picture import new_axes
from steppe.diagnostics._surface import LossOf, NotFinite, Surface, Weigh, in_default

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CPU = torch.device("cpu")  # where hessian-eigenthings draws
POINTS = 512
"""Of the grid that the density is given on."""


@dataclass(frozen=True)
class Eigenvalue:
    """An end of the spectrum.

    Attributes:
        value: Lanczos' figure, which never lies outside of the spectrum.
        error: length of the residual ||H v - value v||, by a product of its own: so near is a true eigenvalue.
    """

    value: float
    error: float


@dataclass(frozen=True)
class Trace:
    """The sum of all eigenvalues.

    Attributes:
        value: the estimate; exact where there are no more weights than probes.
        error: its standard error, 0 where it is exact; None where fewer than six probes tell nothing of it.
    """

    value: float
    error: float | None


@dataclass(frozen=True)
class Density:
    """The share of eigenvalues near a value, smoothed by Gaussians; its integral is 1.

    Attributes:
        eigenvalue: the grid. density: there. width: the standard deviation of the Gaussians.
    """

    eigenvalue: tuple[float, ...]
    density: tuple[float, ...]
    width: float


@dataclass(frozen=True)
class Curvature:
    """What :func:`curvature` found.

    Attributes:
        weights: how many there are: the size of the Hessian.
        loss: the mean loss at these weights.
        lambda_max: the largest eigenvalue. lambda_min: the smallest, negative where the loss curves downward.
        trace: the sum of all; None with ``probes=0``.
        density: of the spectrum; None with ``runs=0``.
    """

    weights: int
    loss: float
    lambda_max: Eigenvalue
    lambda_min: Eigenvalue
    trace: Trace | None
    density: Density | None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dicts, for JSON."""
        return asdict(self)

    def plot(self, axes: Axes | None = None, label: str | None = None) -> Axes:
        """The density by the eigenvalue, on a logarithmic scale. Needs matplotlib (``steppe[study]``)."""
        axes = new_axes() if axes is None else axes
        if self.density is not None:
            (line,) = axes.semilogy(self.density.eigenvalue, self.density.density, label=label, linewidth=1.2)
            axes.axvline(self.lambda_max.value, color=line.get_color(), linewidth=0.8, linestyle=":")
        least = 1e-3 / max(self.weights, 2)
        axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", ylim=(least, None))
        if label:
            axes.legend()
        return axes


def curvature(
    model: nn.Module,
    loss_of: LossOf,
    batches: Iterable[Any],
    *,
    steps: int = 60,
    probes: int = 90,
    runs: int = 3,
    seed: int = 0,
    weigh: Weigh | None = None,
) -> Curvature:
    """The spectrum of the Hessian of the mean loss over ``batches``, with regard to the weights that are trained.

    Weights, buffers, ``.grad`` and generators are afterwards as before, bit for bit, also after an error.

    Args:
        model: in the mode in which it is to be looked at (``model.eval()`` for a trained one).
        loss_of: the scalar loss of a batch.
        batches: what the mean is over.
        steps: of Lanczos for each end of the spectrum and each run of the quadrature, at most one per weight.
        probes: products H v for the trace; 0 for none. No fewer than the weights: exact, by unit vectors.
        runs: of the quadrature for the density, each from a vector of its own; 0 for none.
        seed: of the random vectors.
        weigh: how much a batch counts, a function of it: of a loss per token its tokens. Each the same by default.

    Returns:
        Both ends with the length of their residuals, the trace with its standard error, and the density.

    Cost: (2 + runs) steps + probes + 2 products, each about four passes; memory for ``steps`` vectors in float64.

    Raises:
        ModuleNotFoundError: hessian-eigenthings is not installed.
        ValueError, TypeError: nothing to look at, weights in few bits, a loss that is NaN or inf or has no finite
            Hessian, or an argument out of range.
    """
    check_count("steps", steps)
    check_count("probes", probes, 0)
    check_count("runs", runs, 0)
    surface = Surface(model, loss_of, batches, weigh)
    with surface.lent(), in_default(_CPU):
        operator, loss = _operator(surface), surface.here()
        steps = min(steps, surface.size)
        largest, smallest = (_end(operator, which, steps, seed) for which in ("LA", "SA"))
        trace = _trace(operator, probes, seed) if probes else None
        density = _density(operator, runs, steps, seed) if runs else None
        return Curvature(surface.size, loss, largest, smallest, trace, density)


def lambda_max(
    model: nn.Module,
    loss_of: LossOf,
    batches: Iterable[Any],
    *,
    steps: int = 20,
    seed: int = 0,
    weigh: Weigh | None = None,
) -> Eigenvalue:
    """The largest eigenvalue alone, as :func:`curvature` finds it.

    Cost: ``steps`` + 1 products, each about four passes.

    Raises:
        ValueError: as :func:`curvature`; also where the loss is NaN or inf.
    """
    check_count("steps", steps)
    surface = Surface(model, loss_of, batches, weigh)
    with surface.lent(), in_default(_CPU):
        return _end(_operator(surface), "LA", min(steps, surface.size), seed)


def _operator(surface: Surface) -> Any:
    """The Hessian as hessian-eigenthings takes it: from a flat vector in float64 to another."""
    for name, weight in surface.named.items():
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"parameter {name} is {str(weight.dtype).removeprefix('torch.')}, whose few bits drown second "
                "derivatives; expected float32 or float64: look at model.float()"
            )
    try:
        from hessian_eigenthings import LambdaOperator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the curvature needs {error.name}, which is not installed; run: pip install 'steppe[curvature]'",
            name=error.name,
        ) from error
    device = surface.weights[0].device
    device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    sizes = [w.numel() for w in surface.weights]

    def product(flat: Tensor) -> Tensor:
        parts = zip(flat.split(sizes), surface.weights, strict=True)
        vector = [part.view(w.shape).to(device=w.device, dtype=w.dtype) for part, w in parts]
        flat = torch.cat([h.reshape(-1).to(device=device, dtype=torch.float64) for h in surface.product(vector)])
        if not bool(flat.isfinite().all()):
            raise NotFinite(
                "a product of the Hessian with a vector is NaN or inf; expected a loss that is twice differentiable at "
                "the model's weights (no square root or norm of zero), and finite weights and batches"
            )
        return flat

    return LambdaOperator(product, surface.size, device, torch.float64)


def _end(operator: Any, which: str, steps: int, seed: int) -> Eigenvalue:
    from hessian_eigenthings import lanczos

    found = lanczos(operator, k=1, max_iter=steps, reorthogonalize=True, which=which, seed=seed)
    value, vector = float(found.eigenvalues[0]), found.eigenvectors[0]
    vector = vector / torch.linalg.vector_norm(vector)
    # Lanczos' own figure knows nothing of the rounding in the products, and falls to zero below it.
    residual = float(torch.linalg.vector_norm(operator.matvec(vector) - value * vector))
    return Eigenvalue(value, max(float(found.residuals[0]), residual))


def _trace(operator: Any, probes: int, seed: int) -> Trace:
    from hessian_eigenthings import trace

    if probes < operator.size:
        found = trace(operator, num_matvecs=probes, seed=seed)
        return Trace(found.estimate, None if math.isnan(found.stderr) else found.stderr)
    units = torch.eye(operator.size, dtype=operator.dtype, device=operator.device)
    return Trace(sum(float(operator.matvec(unit) @ unit) for unit in units), 0.0)


def _density(operator: Any, runs: int, steps: int, seed: int) -> Density:
    from hessian_eigenthings import spectral_density

    found = spectral_density(operator, num_runs=runs, lanczos_steps=steps, num_grid_points=POINTS, seed=seed)
    return Density(tuple(found.grid.tolist()), tuple(found.density.tolist()), float(found.sigma))
