"""RWP and ARWP, random weight perturbation: Li, Tao, Yan, et al., TMLR 2024, arXiv 2404.00357."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value
from steppe.ascent import Ascent
from steppe.combine import Combine, Mix, Replace
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe
from steppe.noise import Noise


@recipe
def RWP(model: nn.Module, optimizer: Given, *, rho: Value = 0.01, gamma: Value = 1.0, **common: Any) -> SharpnessAware:
    """Gaussian noise on every filter, before the only pass: eps_i = rho ||w_i|| z_i, d = (1 - gamma) g + gamma g~.

    w_i is row i of a tensor (all weights of one output) or a whole vector, z_i standard normal numbers: the length of
    eps_i is about rho sqrt(n) ||w_i|| for n weights. With ``gamma`` below 1 this is the paper's mixed form, m-RWP.
    :class:`steppe.FlatLoRA` is its case for the merged weights of LoRA, in units without the sqrt(n).
    ``backward`` returns the loss at w + eps where that is the only pass. See :class:`steppe.Noise`.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: sigma, the standard deviation of the noise relative to a filter's length, >= 0. The authors' scripts have
            0.015 for m-RWP, and for RWP a rise from 0.001 to 0.011 along half a cosine, ``steppe.curves.Cosine(0.001,
            0.011, total_steps)``; the default is their code's.
        gamma: lambda, weight of g~; 1 is RWP, 0.5 the paper's m-RWP, which takes g and g~ of two batches; here both are
            of the same one.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 pass (2 with gamma other than 1) and one draw of as many numbers as weights; one parameter-sized buffer
    while perturbed, with gamma one more.

    Source: arXiv 2404.00357 and the authors' code (github.com/nblt/mARWP).
    """
    return SharpnessAware(model, optimizer, ascent=_noisy(rho, Noise()), combine=_mixed(gamma), **common)


@recipe
def ARWP(
    model: nn.Module,
    optimizer: Given,
    *,
    rho: Value = 0.01,
    eta: float = 0.1,
    decay: float = 0.99,
    gamma: Value = 1.0,
    **common: Any,
) -> SharpnessAware:
    """RWP with less noise where gradients were large: eps_i = rho ||w_i|| z_i / sqrt(1 + eta F_i), F <- decay F + d^2.

    F_i is the sum of F over row i; in a vector every entry has its own. d is the gradient that the optimizer is handed,
    without a loss scale and after clipping; the authors take it before clipping and, in the mixed form, of g~ alone.

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer.
        rho: sigma, as RWP's.
        eta: eta, how much F counts, >= 0; 0 is RWP. In units of the loss; 0.1 in the authors' scripts.
        decay: beta, of F, in [0, 1); 0.99 in the authors' scripts.
        gamma: lambda, as RWP's.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 1 pass (2 with gamma other than 1) and one draw of as many numbers as weights; one parameter-sized buffer
    while perturbed, with gamma one more, and one between steps.

    Source: arXiv 2404.00357 and the authors' code (github.com/nblt/mARWP).
    """
    return SharpnessAware(model, optimizer, ascent=_noisy(rho, Noise(eta, decay)), combine=_mixed(gamma), **common)


def _noisy(rho: Value, noise: Noise) -> Ascent:
    return Ascent(rho=rho, direction=noise, scope="none")


def _mixed(gamma: Value) -> Combine:
    return Replace() if gamma == 1 else Mix(gamma)


_PAPER = "Li, Tao, Yan, Lei, Wu, Fang, He, Huang, TMLR 2024, arXiv 2404.00357"

ROW = Row(
    name="rwp", title="RWP", recipe=RWP, year=2024, paper=_PAPER, passes="1", buffers="1",
    use="when a second pass cannot be afforded; any optimizer, nothing kept between steps",
    good=({}, {"rho": 0.05, "gamma": 0.5}, {"rho": 0.0}), bad=(*BAD_RHO, {"gamma": -1.0}), rho_factor=0.2,
)  # fmt: skip

ROW_ARWP = Row(
    name="arwp", title="ARWP", recipe=ARWP, year=2024, paper=_PAPER, passes="1", buffers="2 (1 between steps)",
    use="as RWP, where some filters bear less noise than others",
    good=({}, {"rho": 0.05, "eta": 1.0, "decay": 0.9, "gamma": 0.5}),
    bad=(*BAD_RHO, {"eta": -1.0}, {"decay": 1.0}, {"gamma": -1.0}), rho_factor=0.2,
)  # fmt: skip
