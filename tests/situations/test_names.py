"""What a tensor is, is not in how its name ends: which tensors ASAM takes for biases, and SAM-ON for normalisation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import steppe
from steppe._optimizers import Optimizers
from steppe._parameters import Parameters

RHO, ETA = 0.7, 0.05


class Double(nn.Module):
    """A parametrisation with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def parametrised(module: nn.Module, *names: str) -> nn.Module:
    for name in names:
        parametrize.register_parametrization(module, name, Double())
    return module


def pruned(module: nn.Module) -> nn.Module:
    prune.l1_unstructured(module, "bias", 0.3)
    prune.l1_unstructured(module, "weight", 0.3)
    return module


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")  # type: ignore[return-value]


class LinearWithList(nn.Module):
    """A bias in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.ParameterList([torch.randn(2), torch.randn(2)])
        self.debias, self.bias_scale = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))


RNN = {f"bias_{kind}_l{i}{way}" for kind in ("ih", "hh") for i in range(2) for way in ("", "_reverse")}
CELL = {"bias_ih", "bias_hh"}
BIASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "linear": (lambda: nn.Linear(3, 2), {"bias"}),
    "bilinear": (lambda: nn.Bilinear(2, 3, 2), {"bias"}),
    "conv": (lambda: nn.Conv2d(1, 2, 2), {"bias"}),
    "transposed conv": (lambda: nn.ConvTranspose1d(1, 2, 2), {"bias"}),
    "embedding": (lambda: nn.Embedding(3, 2), set()),
    "prelu": (lambda: nn.PReLU(), set()),
    "batch norm": (lambda: nn.BatchNorm1d(3), {"bias"}),
    "layer norm": (lambda: nn.LayerNorm(3), {"bias"}),
    "group norm": (lambda: nn.GroupNorm(1, 3), {"bias"}),
    "rms norm": (lambda: nn.RMSNorm(3), set()),
    "rnn": (lambda: nn.RNN(2, 3, 2, bidirectional=True), RNN),
    "gru": (lambda: nn.GRU(2, 3, 2, bidirectional=True), RNN),
    "lstm": (lambda: nn.LSTM(2, 3, 2, bidirectional=True, proj_size=2), RNN),
    "rnn cell": (lambda: nn.RNNCell(2, 3), CELL),
    "gru cell": (lambda: nn.GRUCell(2, 3), CELL),
    "lstm cell": (lambda: nn.LSTMCell(2, 3), CELL),
    "attention": (lambda: nn.MultiheadAttention(4, 2), {"in_proj_bias", "out_proj.bias"}),
    "attention with a key and a value more": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True, kdim=3), {"in_proj_bias", "out_proj.bias"},
    ),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(4, 2, 3),
        {"self_attn.in_proj_bias", "self_attn.out_proj.bias", "linear1.bias", "linear2.bias", "norm1.bias",
         "norm2.bias"},
    ),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(3, 2)), {"bias"}),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(3, 2)), {"bias"}),
    "a bias parametrised": (lambda: parametrised(nn.Linear(3, 2), "bias"), {"parametrizations.bias.original"}),
    "a bias with weight norm": (
        lambda: parametrizations.weight_norm(nn.Linear(3, 2), "bias"),
        {"parametrizations.bias.original0", "parametrizations.bias.original1"},
    ),
    "a gru parametrised": (
        lambda: parametrised(nn.GRU(2, 3), "bias_ih_l0", "weight_hh_l0"),
        {"parametrizations.bias_ih_l0.original", "bias_hh_l0"},
    ),
    "an attention parametrised": (
        lambda: parametrised(nn.MultiheadAttention(4, 2, add_bias_kv=True), "in_proj_bias", "bias_k"),
        {"parametrizations.in_proj_bias.original", "out_proj.bias"},
    ),
    "pruned": (lambda: pruned(nn.Linear(3, 2)), {"bias_orig"}),
    "compiled": (lambda: compiled(nn.GRUCell(2, 3)), CELL),
    "a compiled part": (lambda: nn.Sequential(compiled(nn.Linear(3, 2))), {"0.bias"}),
    "lists and other names": (LinearWithList, {"bias.0", "bias.1"}),
}  # fmt: skip


def filled(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by hand, for the displacement by hand."""
    torch.manual_seed(0)
    named = {k.replace("_orig_mod.", ""): p for k, p in model.named_parameters()}
    for p in named.values():
        p.grad = torch.randn_like(p)
    return {k: p.grad.clone() for k, p in named.items()}


@pytest.mark.parametrize("kind", BIASES)
def test_biases_are_not_scaled(kind: str) -> None:
    model, biases = BIASES[kind][0]().double(), BIASES[kind][1]
    g = filled(model)
    named = {k.replace("_orig_mod.", ""): p for k, p in model.named_parameters()}
    assert biases <= named.keys()
    w = {k: p.detach().clone() for k, p in named.items()}
    t = {k: torch.ones_like(v) if k in biases else v.abs() + ETA for k, v in w.items()}
    length = torch.cat([(t[k] * g[k]).flatten() for k in w]).norm()
    sharp = steppe.ASAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO, eta=ETA)
    with sharp.perturbed():
        for k, p in named.items():
            torch.testing.assert_close(p - w[k], RHO * t[k] ** 2 * g[k] / length, rtol=1e-10, atol=1e-10)


def test_biases_of_adapters() -> None:
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    config = peft.LoraConfig(target_modules=["0"], modules_to_save=["1"], r=2, lora_bias=True, use_dora=False)
    model = peft.get_peft_model(base, config)
    g = {k: torch.ones_like(p) for k, p in model.named_parameters() if p.requires_grad}
    for k, p in model.named_parameters():
        p.grad = g.get(k)
    w = {k: p.detach().clone() for k, p in model.named_parameters() if k in g}
    assert sum(k.endswith("bias") for k in w) == 2
    t = {k: torch.ones_like(v) if k.endswith("bias") else v.abs() + ETA for k, v in w.items()}
    length = torch.cat([(t[k] * g[k]).flatten() for k in w]).norm()
    sharp = steppe.ASAM(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), rho=RHO,
                        eta=ETA)  # fmt: skip
    with sharp.perturbed():
        for k, p in model.named_parameters():
            if k in w:
                torch.testing.assert_close(p - w[k], RHO * t[k] ** 2 * g[k] / length, rtol=1e-10, atol=1e-10)


# --- normalisation -----------------------------------------------------------------------------------------------


class NormalizedLinear(nn.Linear):
    """A linear layer whose rows are normalised."""


class NormLinear(nn.Linear):
    """The same by another name."""


class LayerNormMLP(nn.Module):
    """A normalisation and two layers whose tensors are its own, as in fused blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm_weight, self.fc1_weight = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
        self.fc1_bias = nn.Parameter(torch.ones(3))


class ConvNormActivation(nn.Sequential):
    """A block named for what it holds, with a scale of no normalisation beside it."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.PReLU(2))


class ChannelNorm(nn.Module):
    """Scales for every channel, shaped to be broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, 3, 1, 1))


class UnitNorm(nn.Module):
    """A parametrisation, which is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def with_unit_norm() -> nn.Module:
    layer = nn.Linear(2, 2)
    parametrize.register_parametrization(layer, "weight", UnitNorm())
    return layer


def parametrised_norm() -> nn.Module:
    layer = nn.LayerNorm(2)
    parametrize.register_parametrization(layer, "weight", UnitNorm())
    return layer


NORMS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "normalised rows": (lambda: NormalizedLinear(2, 2), set()),
    "a linear layer": (lambda: NormLinear(2, 2), set()),
    "fused": (LayerNormMLP, set()),
    "a block": (ConvNormActivation, {"1.weight", "1.bias"}),
    "for channels": (ChannelNorm, {"gamma"}),
    "over two dimensions": (lambda: nn.LayerNorm((2, 3)), {"weight", "bias"}),
    "parametrised": (parametrised_norm, {"parametrizations.weight.original", "bias"}),
    "a parametrisation": (with_unit_norm, set()),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(2, 2)), set()),
    "old weight norm": (lambda: nn.utils.weight_norm(nn.Linear(2, 2)), set()),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(2, 2)), set()),
    "compiled": (lambda: compiled(nn.LayerNorm(2)), {"weight", "bias"}),
    "local response": (lambda: nn.LocalResponseNorm(2), set()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("kind", NORMS)
def test_only_scales_and_shifts_of_normalisation_layers(kind: str) -> None:
    make, wanted = NORMS[kind]
    model = nn.Sequential(make(), nn.LayerNorm(2))
    entries = Parameters(model, Optimizers(torch.optim.SGD(model.parameters(), lr=0.1)), "norm").entries
    assert {e.name for e in entries if e.inside} == {f"0.{k}" for k in wanted} | {"1.weight", "1.bias"}
