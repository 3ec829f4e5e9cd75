"""Every method as a gradient: `method(grad, w, t, memory, ...) -> d`, what the base optimizer is given.

`grad(w)` is the gradient of the loss of this step's mini-batch at the weights w. `t` counts the steps done
before this one. `memory` is the method's own, empty at the start. A method that adds something after the
base's step (WSAM) leaves it in memory["after"], in units of the learning rate. The base's own state is in
memory["base"], to be read (MSAM).
"""

import math

import numpy as np

from .algebra import at, dot, norm, plus, size, times
from .perturbations import LAYERWISE, per_tensor, spherical
from .schedules import coin, drawn, normal, probability
from .sparse import sl_sam


def base(grad, w, t, memory):
    return grad(w)


def sam(grad, w, t, memory, rho=0.05):
    g = grad(w)
    return grad(plus(w, spherical(w, g, at(rho, t))))


def asam(grad, w, t, memory, rho=0.5, eta=0.01):
    g = grad(w)
    return grad(plus(w, spherical(w, g, rho, eta=eta)))


def sam_on(grad, w, t, memory, rho, norm_layers=("ln",)):
    g = grad(w)
    return grad(plus(w, spherical(w, g, rho, only=lambda k: k.split(".")[0] in norm_layers)))


def layer_sam(grad, w, t, memory, rho=0.1, layerwise="trust"):
    g = grad(w)
    return grad(plus(w, LAYERWISE[layerwise](w, g, rho)))


def late_sam(grad, w, t, memory, rho, start, stop):
    if start <= t < stop:
        return sam(grad, w, t, memory, rho)
    return grad(w)


def tail_sam(grad, w, t, memory, rho, lr_max, begin=1.0, ramp=1.0, warmup=0, lr=0.1):
    """``lr``: that of the cases' SGD, which does not fall; falling rates are in tests/methods/test_tail_sam.py."""
    fallen = max(0.0, 1 - lr / (begin * lr_max))
    radius = 0.0 if t < warmup or not fallen else rho * (min(fallen / ramp, 1.0) if ramp else 1.0)
    return sam(grad, w, t, memory, radius) if radius else grad(w)


def rst(grad, w, t, memory, rho, p=0.5, schedule="constant", p_end=None, total_steps=None, start_step=0, seed=0):
    if coin(seed, t) < probability(schedule, t, total_steps, p, p_end, start_step):
        return sam(grad, w, t, memory, rho)
    return grad(w)


def grst(
    grad, w, t, memory, rho, p=0.5, kappa=1.0, schedule="constant", p_end=None, total_steps=None,
    gamma_max=math.inf, start_step=0, seed=0,
):  # fmt: skip
    g = grad(w)
    chance = probability(schedule, t, total_steps, p, p_end, start_step)
    if not coin(seed, t) < chance:
        return g
    gamma = min(kappa / chance, gamma_max)
    g_tilde = grad(plus(w, spherical(w, g, rho)))
    return plus(times(1 - gamma, g), g_tilde, gamma)


def gnp(grad, w, t, memory, rho, gamma=0.8):
    g = grad(w)
    g_tilde = grad(plus(w, spherical(w, g, rho)))
    return plus(times(1 - gamma, g), g_tilde, gamma)


def _reuse(g, memory, alpha, push):
    """A LookSAM step without a second pass: the stored push is added to the fresh gradient."""
    if "g_v" not in memory:
        return g
    g_v = memory["g_v"]
    length = norm(g_v)
    relative = length / memory["g_norm"]  # of the correction at the refresh, beside its gradient
    if push == "paper":
        relative = alpha
    elif push == "guarded":
        relative = 0.0 if dot(g, g_v) < 0 else min(alpha, relative)
    return plus(g, g_v, relative * norm(g) / length) if length > 0 else g


def _remember(g, g_tilde, memory):
    """g_v = g~ - (<g~, g> / ||g||^2) g, and ||g||, at a refresh."""
    memory["g_v"] = plus(g_tilde, g, -dot(g_tilde, g) / dot(g, g))
    memory["g_norm"] = norm(g)


def look_sam(grad, w, t, memory, rho, k=5, alpha=0.7, push="guarded"):
    g = grad(w)
    if t % k != 0:
        return _reuse(g, memory, at(alpha, t), push)
    g_tilde = grad(plus(w, spherical(w, g, rho)))
    _remember(g, g_tilde, memory)
    return g_tilde


def look_layer_sam(grad, w, t, memory, rho=0.1, k=5, alpha=0.7, push="guarded", layerwise="trust"):
    g = grad(w)
    if t % k != 0:
        return _reuse(g, memory, alpha, push)
    g_tilde = grad(plus(w, LAYERWISE[layerwise](w, g, rho)))
    _remember(g, g_tilde, memory)
    return g_tilde


def gsam(grad, w, t, memory, rho, alpha=0.4):
    g = grad(w)
    g_tilde = grad(plus(w, spherical(w, g, at(rho, t))))
    orthogonal = plus(g, g_tilde, -dot(g, g_tilde) / dot(g_tilde, g_tilde))
    return plus(g_tilde, orthogonal, -at(alpha, t))


def fsam(grad, w, t, memory, rho, sigma=1.0, decay=0.9):
    g = grad(w)
    memory["m"] = plus(times(decay, memory.get("m", times(0.0, g))), g, 1 - decay)
    return grad(plus(w, spherical(w, plus(g, memory["m"], -sigma), rho)))


def wsam(grad, w, t, memory, rho, gamma=0.9):
    g = grad(w)
    g_tilde = grad(plus(w, spherical(w, g, rho)))
    memory["after"] = times(-gamma / (1 - gamma), plus(g_tilde, g, -1.0))
    return g


def aesam(grad, w, t, memory, rho, total_steps, lambda_1=-1.0, lambda_2=1.0, decay=0.9):
    g = grad(w)
    n = dot(g, g)
    memory["mu"] = decay * memory.get("mu", 0.0) + (1 - decay) * n
    memory["var"] = decay * memory.get("var", math.exp(-10)) + (1 - decay) * (n - memory["mu"]) ** 2
    c = (t / total_steps) * lambda_1 + (1 - t / total_steps) * lambda_2
    if n >= memory["mu"] + c * math.sqrt(memory["var"]):
        return grad(plus(w, spherical(w, g, rho)))
    return g


def _first_moment(state, w):
    """The base optimizer's own momentum: SGD's buffer, Adam's first moment; None before its first step."""
    if "buffer" in state:
        return state["buffer"]
    return {k: state["m", k] for k in w} if ("m", next(iter(w))) in state else None


def msam(grad, w, t, memory, rho, sign=-1, decay=None):
    v = memory.get("m") if decay is not None else _first_moment(memory["base"], w)
    d = grad(w if v is None else plus(w, spherical(w, times(sign, v), at(rho, t))))
    if decay is not None:
        memory["m"] = plus(times(decay, memory.get("m", times(0.0, d))), d, 1 - decay)
    return d


def s2_sam(grad, w, t, memory, rho):
    old = memory.get("d")
    memory["d"] = grad(w if old is None else plus(w, spherical(w, old, at(rho, t))))
    return memory["d"]


def _filters(x):
    """The filters of a tensor: its rows, each with all of its weights, or the whole of a vector."""
    return [(i,) for i in range(len(x))] if x.ndim > 1 else [...]


def rwp(grad, w, t, memory, rho=0.01, eta=0.0, decay=0.99, gamma=1.0, seed=0):
    above = {}
    for k, x in w.items():
        eps, z = np.zeros_like(x), normal(k, x.shape, seed, t)
        old = memory["F"][k] if "F" in memory else np.zeros_like(x)
        for i in _filters(x):
            fisher = old[i].sum() if x.ndim > 1 else old[i]
            eps[i] = at(rho, t) * size(x[i]) * z[i] / np.sqrt(1 + eta * fisher)
        above[k] = x + eps
    d = grad(above)
    if gamma != 1:
        d = plus(times(1 - gamma, grad(w)), d, gamma)
    memory["F"] = {k: decay * memory["F"][k] + d[k] ** 2 if "F" in memory else d[k] ** 2 for k in d}
    return d


def arwp(grad, w, t, memory, rho=0.01, eta=0.1, decay=0.99, gamma=1.0, seed=0):
    return rwp(grad, w, t, memory, rho, eta, decay, gamma, seed)


def esam(grad, w, t, memory, rho, beta=0.6, gamma=0.5, seed=0):
    g = grad(w)
    eps = spherical(w, g, at(rho, t))
    if beta < 1:
        eps = {k: kept * eps[k] / beta for k, kept in drawn(w, beta, "subset", seed, t).items()}
    above = plus(w, eps)
    rise = {row: grad.loss(above, row) - grad.loss(w, row) for row in grad.rows}
    count = math.floor(gamma * len(rise) + 0.5)
    return grad(above, sorted(rise, key=rise.get)[-count:])


def le_sam(grad, w, t, memory, sigma=0.35, rho=0.3):
    g = grad(w)
    radius = min(at(sigma, t) / norm(g), at(rho, t))
    return grad(plus(w, spherical(w, g, radius)))


def _stretched(g, iterations):
    """U p(S) V^T of a matrix, p Muon's polynomial so many times after S / ||S||, or 1 where S is not rounding."""
    if not g.any():
        return g
    u, s, v = np.linalg.svd(g, full_matrices=False)
    if iterations is None:
        return u @ np.diag((s > 1e-13 * s.max()).astype(float)) @ v
    s = s / math.sqrt((s**2).sum())
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ np.diag(s) @ v


def muon_sam(grad, w, t, memory, rho=0.005, iterations=5):
    eps = {k: _stretched(g, iterations) if g.ndim > 1 else g / (size(g) or 1.0) for k, g in grad(w).items()}
    return grad(plus(w, eps, at(rho, t)))


def k_sam(grad, w, t, memory, rho, samples=0.25, descent=0.5):
    rows = list(grad.rows)
    hardest = sorted(rows, key=lambda row: grad.loss(w, row))
    a = samples if isinstance(samples, int) else math.floor(samples * len(rows) + 0.5)
    d = len(rows) if descent is None else math.floor(descent * len(rows) + 0.5)
    eps = spherical(w, grad(w, hardest[-a:]), at(rho, t))
    return grad(plus(w, eps), hardest[-d:])


def compose(grad, w, t, memory, rho, p, k, eta=None, scope="trust", alpha=0.7, push="paper", gamma=1.0, seed=0):
    """RST x LookSAM x ASAM x layer-wise x Mix: refreshed when k divides t and the coin of t is below p."""
    g = grad(w)
    if t % k != 0 or not coin(seed, t) < p:
        return _reuse(g, memory, alpha, push)
    shapes = {"global": spherical, "tensor": per_tensor, **LAYERWISE}
    g_tilde = grad(plus(w, shapes[scope](w, g, rho, eta=eta)))
    _remember(g, g_tilde, memory)
    return plus(times(1 - gamma, g), g_tilde, gamma)


METHODS = {
    "sam": sam,
    "asam": asam,
    "layer_sam": layer_sam,
    "rst": rst,
    "grst": grst,
    "gnp": gnp,
    "look_sam": look_sam,
    "look_layer_sam": look_layer_sam,
    "adasam": sam,
    "sam_adamw": sam,
    "gsam": gsam,
    "fsam": fsam,
    "wsam": wsam,
    "aesam": aesam,
    "sam_on": sam_on,
    "late_sam": late_sam,
    "tail_sam": tail_sam,
    "sl_sam": sl_sam,
    "msam": msam,
    "s2_sam": s2_sam,
    "rwp": rwp,
    "arwp": arwp,
    "esam": esam,
    "k_sam": k_sam,
    "muon_sam": muon_sam,
    "le_sam": le_sam,
}
