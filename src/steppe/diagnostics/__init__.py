"""Looks at a model that leave it as it was: which radius to train with, and how the loss lies around the weights."""

from steppe.diagnostics._curve import Look
from steppe.diagnostics._trials import Trial
from steppe.diagnostics.curvature import Curvature, Density, Eigenvalue, Trace, curvature, lambda_max
from steppe.diagnostics.rho import RhoSearch, find_rho
from steppe.diagnostics.sharpness import Rise, Sharpness, m_sharpness

__all__ = [
    "Curvature", "Density", "Eigenvalue", "Look", "RhoSearch", "Rise", "Sharpness", "Trace", "Trial", "curvature",
    "find_rho", "lambda_max", "m_sharpness",
]  # fmt: skip
