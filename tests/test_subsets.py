"""Subsets of the parameters: normalisation layers of every make and nothing else, or a rule of one's own."""

import pytest
import torch
from torch import nn

from steppe._optimizers import Optimizers
from steppe._parameters import Parameters


class LlamaRMSNorm(nn.Module):
    """A normalisation layer of another library."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch norm with its activation inside, as in timm."""

    def __init__(self, size):
        super().__init__(size)
        self.act = nn.ReLU()


class Whitening(nn.LayerNorm):
    """A layer norm by another name."""


class PreNorm(nn.Module):
    """A block that is named for the norm it holds."""

    def __init__(self, size):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.inner = nn.Linear(size, size)


NORMS = {
    "batch 1d": lambda: nn.BatchNorm1d(2),
    "batch 2d": lambda: nn.BatchNorm2d(2),
    "sync": lambda: nn.SyncBatchNorm(2),
    "layer": lambda: nn.LayerNorm(2),
    "group": lambda: nn.GroupNorm(1, 2),
    "instance": lambda: nn.InstanceNorm2d(2, affine=True),
    "rms": lambda: nn.RMSNorm(2),
    "rms of one's own": lambda: LlamaRMSNorm(2),
    "with activation": lambda: BatchNormAct2d(2),
    "by another name": lambda: Whitening(2),
}
OTHERS = {
    "linear": lambda: nn.Linear(2, 2),
    "conv": lambda: nn.Conv2d(2, 2, 1),
    "embedding": lambda: nn.Embedding(2, 2),
    "prelu": lambda: nn.PReLU(),
    "attention": lambda: nn.MultiheadAttention(2, 1),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
}


def in_the_subset(model, subset="norm"):
    optimizers = Optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
    return {e.name for e in Parameters(model, optimizers, subset).entries if e.inside}


@pytest.mark.parametrize("kind", NORMS)
def test_normalisation_is_found(kind):
    layer = NORMS[kind]()
    expected = {f"1.{k}" for k, _ in layer.named_parameters()}
    assert expected and in_the_subset(nn.Sequential(nn.Linear(2, 2), layer)) == expected


@pytest.mark.parametrize("kind", OTHERS)
def test_other_layers_are_not_found(kind):
    assert in_the_subset(nn.Sequential(OTHERS[kind](), nn.LayerNorm(2))) == {"1.weight", "1.bias"}


def test_a_block_named_for_its_norm_gives_its_norm_alone():
    assert in_the_subset(nn.Sequential(PreNorm(2))) == {"0.norm.weight", "0.norm.bias"}


def test_a_transformer_layer_gives_its_two_norms():
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    assert in_the_subset(layer) == {f"norm{i}.{k}" for i in (1, 2) for k in ("weight", "bias")}


def test_a_subset_of_ones_own_sees_names_and_parameters():
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    assert in_the_subset(model, lambda name, p: name.startswith("head") and p.ndim > 1) == {"head.weight"}
    assert in_the_subset(model, "all") == {"body.weight", "body.bias", "head.weight", "head.bias"}
