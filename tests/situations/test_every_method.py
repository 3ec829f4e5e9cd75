"""A forward that moves what it reads gives, for every method, the numbers of one whose state is moved by hand."""

from __future__ import annotations

import pytest
import torch
from tests.situations.by_hand import batches
from torch import nn

import steppe
from steppe.methods import METHODS


class Told(nn.Module):
    """A network with a centre that is read and then, if ``itself``, moved; the centre depends on the batch alone."""

    def __init__(self, itself: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.itself = itself
        self.inner, self.norm, self.last = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 1)
        self.register_buffer("centre", torch.zeros(4))
        self.scale = 1.0  # a plain number, moved too
        self.double()

    def moved(self, x):
        return 0.5 * self.centre + x.mean(0), 0.5 * self.scale + float(x.abs().mean())

    def forward(self, x):
        out = self.last(torch.tanh(self.norm(self.inner(x - self.centre * self.scale)))).squeeze(-1)
        if self.itself:
            self.centre, self.scale = self.moved(x)
        return out


def run(name, itself, micro):
    row, model = METHODS[name], Told(itself)
    make = row.optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    optimizer = make(model.parameters())
    settings = {"rho": 0.2} | dict(row.good[0]) if row.tunes == "rho" else dict(row.good[0])
    sharp = row.recipe(model, optimizer, **settings)

    def losses(x):
        return (model(x) - 1).square() if row.per_sample else (model(x) - 1).square().mean()

    kept = []
    for x in batches(6):
        pieces = list(x.split(3)) if micro else [x]
        # With a state moved by hand the pieces must each see their own: one backward for each.
        for piece in pieces:
            kept.append(sharp.backward(losses, piece))
            if not itself:
                model.centre, model.scale = model.moved(piece)
        optimizer.step()
        optimizer.zero_grad()
        kept += [p.detach().clone() for p in model.parameters()] + [model.centre.clone(), torch.tensor(model.scale)]
    return kept


@pytest.mark.parametrize("name", [n for n in METHODS if not METHODS[n].lora])
def test_every_method(name):
    micro = name in ("sam", "look_sam", "gsam", "msam")
    with_state, by_hand = run(name, True, micro), run(name, False, micro)
    far = max(float((a - b).abs().max()) for a, b in zip(with_state, by_hand, strict=True))
    assert far <= 1e-10


MORE = {
    "hardest": {"ascent": steppe.Ascent(rho=0.2), "hardest": 0.5},
    "view": {"ascent": steppe.Ascent(rho=0.2), "look": steppe.Look(view=lambda x: x[:3])},
    "autocast": {"ascent": steppe.Ascent(rho=0.2), "look": steppe.Look(autocast=torch.bfloat16)},
    "momentum, gap": {"ascent": steppe.Ascent(direction=steppe.Momentum()), "combine": steppe.SurrogateGap(0.1)},
    "previous": {"ascent": steppe.Ascent(rho=0.2, direction=steppe.Previous())},
    "adaptive, mixed": {"schedule": steppe.AboveNorm(total_steps=6), "combine": steppe.Mix(0.7)},
    "reuse": {"schedule": steppe.Every(3), "combine": steppe.Reuse(0.5)},
    "sparse": {"select": steppe.Sparse()},
}  # fmt: skip


@pytest.mark.parametrize("name", MORE)
def test_compositions(name):
    found = []
    for itself in (True, False):
        model = Told(itself)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sharp = steppe.SharpnessAware(model, optimizer, **MORE[name])
        kept = []
        for x in batches(6):
            if sharp.needs.per_sample:
                kept.append(sharp.backward(lambda part: (model(part) - 1).square(), x))
            else:
                kept.append(sharp.backward(lambda part: (model(part) - 1).square().mean(), x))
            if not itself:
                model.centre, model.scale = model.moved(x)
            optimizer.step()
            optimizer.zero_grad()
            kept += [p.detach().clone() for p in model.parameters()] + [model.centre.clone()]
        found.append(kept)
    assert max(float((a - b).abs().max()) for a, b in zip(*found, strict=True)) <= 1e-10
