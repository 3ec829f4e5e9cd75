"""A slow, explicit reference of every method, in numpy float64, that shares no code with steppe.

Weights, gradients and moments are dicts from parameter name to array. Nothing here is written for speed or
reuse: each method is the few lines of its equation, so that it can be checked against the paper by eye.
"""

from . import perturbations
from .bases import BASES
from .methods import METHODS, compose
from .problems import MLP, Quadratic
from .schedules import PROBABILITIES, coin, probability
from .trajectory import trajectory

__all__ = [
    "BASES",
    "METHODS",
    "MLP",
    "PROBABILITIES",
    "Quadratic",
    "coin",
    "compose",
    "perturbations",
    "probability",
    "trajectory",
]
