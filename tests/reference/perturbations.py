"""The perturbation eps(w) of each ascent, from the weights w and a gradient (or direction) g."""

# ruff: noqa: N806 - T is the papers' letter for the metric

import numpy as np

from .algebra import norm, size


def radius(rho, name):
    """rho of one tensor: one number for all, or a dict by parameter name (groups with their own rho)."""
    return rho[name] if isinstance(rho, dict) else rho


def metric(w, eta):
    """T_w = |w| + eta, and 1 for biases; with eta=None the identity."""
    if eta is None:
        return {k: np.ones_like(w[k]) for k in w}
    return {k: np.ones_like(w[k]) if k.endswith("bias") else np.abs(w[k]) + eta for k in w}


def spherical(w, g, rho, eta=None, only=None):
    """eps = rho T^2 g / ||T g||, the norm over every moved tensor (SAM: T = 1; ASAM: T = |w| + eta)."""
    T = metric(w, eta)
    moved = [k for k in g if only is None or only(k)]
    length = norm({k: T[k] * g[k] for k in moved})
    eps = {k: np.zeros_like(w[k]) for k in w}
    if length > 0:
        for k in moved:
            eps[k] = radius(rho, k) * T[k] ** 2 * g[k] / length
    return eps


def per_tensor(w, g, rho, eta=None):
    """eps_l = rho T^2 g_l / ||T g_l||: each tensor has the whole radius."""
    T = metric(w, eta)
    eps = {}
    for k in w:
        length = size(T[k] * g[k])
        eps[k] = rho * T[k] ** 2 * g[k] / length if length > 0 else np.zeros_like(w[k])
    return eps


def trust(w, g, rho, eta=None):
    """eps_l = rho ||w_l|| T^2 g_l / ||T g_l||; ||w_l|| = 0 counts as 1, a zero gradient does not move."""
    T = metric(w, eta)
    eps = {}
    for k in w:
        length, weight = size(T[k] * g[k]), size(w[k])
        factor = weight if weight > 0 else 1.0
        eps[k] = rho * factor * T[k] ** 2 * g[k] / length if length > 0 else np.zeros_like(w[k])
    return eps


def paper(w, g, rho, eta=None):
    """eps_l = rho (||w_l|| / ||T g_l||) T^2 g_l / ||T g||; the ratio is 1 where ||w_l|| = 0."""
    T = metric(w, eta)
    whole = norm({k: T[k] * g[k] for k in g})
    eps = {}
    for k in w:
        length, weight = size(T[k] * g[k]), size(w[k])
        if length == 0:
            eps[k] = np.zeros_like(w[k])
            continue
        ratio = weight / length if weight > 0 else 1.0
        eps[k] = rho * ratio * T[k] ** 2 * g[k] / whole
    return eps


LAYERWISE = {"trust": trust, "paper": paper}
