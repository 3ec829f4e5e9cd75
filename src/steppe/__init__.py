"""steppe: sharpness-aware training in the loop that you have.

A sharpness-aware method is a gradient: it takes the place of ``loss.backward()``, and the rest of the loop stays yours.

    >>> import torch, steppe
    >>> _ = torch.manual_seed(0)
    >>> model, criterion = torch.nn.Linear(4, 2), torch.nn.CrossEntropyLoss()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> sharp = steppe.SAM(model, optimizer, rho=0.05)
    >>> for x, y in [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(3)]:
    ...     loss = sharp.backward(lambda: criterion(model(x), y))  # was: loss = criterion(model(x), y); loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> sharp.step
    3
"""

from steppe import _interrupted  # noqa: F401 -- before torch is imported

# isort: split
from steppe import curves, diagnostics, lora, methods, optim, schedule, views
from steppe.ahead import Momentum, Previous
from steppe.ascent import Adaptive, Ascent, Friendly, Gradient, Identity
from steppe.combine import Combine, Combined, Decoupled, Mix, Replace, Reuse, SurrogateGap
from steppe.diagnostics.probe import Probe
from steppe.diagnostics.rho import RhoSearch, find_rho
from steppe.gradient import SharpnessAware
from steppe.lora.bar import BAR
from steppe.lora.bi import BiLoRA
from steppe.lora.flat import FlatLoRA
from steppe.methods.adasam import AdaSAM
from steppe.methods.aesam import AESAM
from steppe.methods.asam import ASAM
from steppe.methods.bar import NBAR, OBAR
from steppe.methods.esam import ESAM
from steppe.methods.fsam import FSAM
from steppe.methods.gnp import GNP
from steppe.methods.grst import GRST
from steppe.methods.gsam import GSAM
from steppe.methods.k_sam import KSAM
from steppe.methods.late_sam import LateSAM
from steppe.methods.layer_sam import LayerSAM
from steppe.methods.le_sam import LESAM
from steppe.methods.look_layer_sam import LookLayerSAM
from steppe.methods.look_sam import LookSAM
from steppe.methods.msam import MSAM
from steppe.methods.muon_sam import MuonSAM
from steppe.methods.rst import RST
from steppe.methods.rwp import ARWP, RWP
from steppe.methods.s2_sam import S2SAM
from steppe.methods.sam import SAM
from steppe.methods.sam_on import SAMON
from steppe.methods.sl_sam import SLSAM
from steppe.methods.tail_sam import TailSAM
from steppe.methods.wsam import WSAM
from steppe.noise import Noise
from steppe.protocol import Method, Needs
from steppe.recommended import recommended
from steppe.schedule import AboveNorm, Always, Bernoulli, Every, Schedule, Window
from steppe.select import Select, Sparse
from steppe.spectral import Spectral
from steppe.views import Look

__version__ = "0.1.0"

__all__ = [
    "AESAM", "ARWP", "ASAM", "AboveNorm", "AdaSAM", "Adaptive", "Always", "Ascent", "BAR", "Bernoulli", "BiLoRA",
    "Combine", "Combined", "Decoupled", "ESAM", "Every", "FSAM", "FlatLoRA", "Friendly", "GNP", "GRST", "GSAM",
    "Gradient", "Identity", "KSAM", "LESAM", "LateSAM", "LayerSAM", "Look", "LookLayerSAM", "LookSAM", "MSAM", "Method",
    "Mix", "Momentum", "MuonSAM", "NBAR", "Needs", "Noise", "OBAR", "Previous", "Probe", "RST", "RWP", "Replace",
    "Reuse", "RhoSearch", "S2SAM", "SAM", "SAMON", "SLSAM", "Schedule", "Select", "SharpnessAware", "Sparse",
    "Spectral", "SurrogateGap", "TailSAM", "WSAM", "Window", "__version__", "curves", "diagnostics", "find_rho", "lora",
    "methods", "optim", "recommended", "schedule", "views",
]  # fmt: skip
