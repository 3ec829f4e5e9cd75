"""Looks at a model that leave it as it was: which radius to train with, and how the loss lies around the weights."""

from steppe.diagnostics._curve import AtRadius
from steppe.diagnostics._trials import Trial
from steppe.diagnostics.hessian import Curvature, Density, Eigenvalue, Trace, curvature, lambda_max
from steppe.diagnostics.pairs import Balance, PairBalance, balance
from steppe.diagnostics.plane import Plane, Point, loss_plane
from steppe.diagnostics.probe import Probe
from steppe.diagnostics.rho import RhoSearch, find_rho
from steppe.diagnostics.sharpness import Rise, Sharpness, m_sharpness

__all__ = [
    "AtRadius", "Balance", "Curvature", "Density", "Eigenvalue", "PairBalance", "Plane", "Point", "Probe", "RhoSearch",
    "Rise", "Sharpness", "Trace", "Trial", "balance", "curvature", "find_rho", "lambda_max", "loss_plane",
    "m_sharpness",
]  # fmt: skip
