"""LayerSAM, the layer-wise half of Look-LayerSAM: Liu et al., CVPR 2022, arXiv 2203.02714."""

from __future__ import annotations

from typing import Any

from torch import nn

from steppe._optimizers import Given
from steppe._parts import Value, check_choice
from steppe.ascent import Ascent
from steppe.gradient import SharpnessAware
from steppe.methods._row import BAD_RHO, Row, recipe


@recipe
def LayerSAM(
    model: nn.Module, optimizer: Given, *, rho: Value = 0.1, layerwise: str = "trust", **common: Any
) -> SharpnessAware:
    """Layer-wise SAM: each tensor's radius follows its own weight norm; d = g~.

    ``layerwise="trust"``: eps_l = rho ||w_l|| g_l / ||g_l||, free of the loss scale (the default).
    ``layerwise="paper"``: eps_l = rho (||w_l|| / ||g_l||) g_l / ||g||, for gradients without a loss scale.
    A tensor of zero weights counts as ||w_l|| = 1 ("trust") or trust ratio 1 ("paper").

    Args:
        model: the model whose loss is minimised.
        optimizer: any base optimizer; LAMB in the paper.
        rho: rho, radius relative to each tensor's norm ("trust"); 0.1 to 0.2 in the paper, often less on small data.
        layerwise: which of the two forms.
        common: ``seed``, ``same_dropout`` and ``generators`` of :class:`steppe.SharpnessAware`.

    Cost: 2 passes; one parameter-sized buffer while perturbed.

    Source: arXiv 2203.02714, section 4.2. The norm that closes the "paper" form is recalled, not verified.
    """
    check_choice("layerwise", layerwise, ("trust", "paper"))
    return SharpnessAware(model, optimizer, ascent=Ascent(rho=rho, scope=layerwise), **common)


ROW = Row(
    name="layer_sam",
    title="LayerSAM",
    recipe=LayerSAM,
    year=2022,
    paper="Liu, Mai, Chen, Hsieh, You, CVPR 2022, arXiv 2203.02714",
    passes="2",
    buffers="1",
    use="large batches and networks whose layers differ in scale",
    good=({}, {"layerwise": "paper", "rho": 0.01}),
    bad=(*BAD_RHO, {"layerwise": "lars"}),
    rho_factor=0.1,
)
