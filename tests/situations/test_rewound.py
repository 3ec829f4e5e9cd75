"""Both passes of a step begin from the same state, and what stays is what the first pass left."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.situations.by_hand import LR, RHO, ByHand, batches, far, loss, state, trained
from tests.situations.stateful import KINDS

import steppe
from steppe.integrations.closure import SharpOptimizer


def pair(kind):
    """The model with SAM on it, and the same model for the loop by hand."""
    model, twin = KINDS[kind](), KINDS[kind]()
    optimizer = torch.optim.SGD(trained(model), lr=LR)
    return model, optimizer, steppe.SAM(model, optimizer, rho=RHO), ByHand(twin)


def tolerance(model):
    """The observers' kernels know float32 only."""
    return 1e-6 if trained(model)[0].dtype == torch.float32 else 1e-10


def agree(model, hand):
    assert far(state(model), state(hand.model)) <= tolerance(model)


def grads_agree(model, wanted):
    assert far([p.grad for p in trained(model)], wanted) <= tolerance(model)


@pytest.mark.parametrize("kind", KINDS)
def test_backward(kind):
    model, optimizer, sharp, hand = pair(kind)
    for x in batches(4):
        sharp.backward(lambda: loss(model, x))
        wanted = hand.step([x])
        grads_agree(model, wanted)
        assert abs(float(sharp.last.surrogate_gap) - hand.gap) <= tolerance(model)
        optimizer.step()
        optimizer.zero_grad()
        agree(model, hand)


# What is state, and how it comes back, is found in one place: the other ways into a pass meet one of each sort.
SORTS = (
    "in place", "rebound", "other storage", "deleted", "longer", "large, through data", "frozen", "attribute", "list",
    "object", "recurrent", "spectral norm",
)  # fmt: skip


@pytest.mark.parametrize("kind", SORTS)
def test_phases(kind):
    model, optimizer, sharp, hand = pair(kind)
    for x in batches(3):
        sharp.mark()
        loss(model, x).backward()
        assert sharp.ascend()
        loss(model, x).backward()
        sharp.restore()
        grads_agree(model, hand.step([x]))
        optimizer.step()
        optimizer.zero_grad()
        agree(model, hand)


@pytest.mark.parametrize("kind", ["in place", "rebound", "large, through data", "frozen", "attribute", "list", "ring"])
@pytest.mark.parametrize("apart", [False, True], ids=["one perturbation", "each its own"])
def test_micro_batches(kind, apart):
    model, optimizer, sharp, hand = pair(kind)
    for x in batches(3):
        pieces = list(x.split(2))
        if apart:
            for piece in pieces:
                sharp.backward(lambda: loss(model, piece))
            wanted = hand.step(*([piece] for piece in pieces))
        else:
            sharp.backward(lambda piece: loss(model, piece), micro_batches=pieces)
            wanted = hand.step(pieces)
        grads_agree(model, wanted)
        optimizer.step()
        optimizer.zero_grad()
        agree(model, hand)


@pytest.mark.parametrize("kind", ["in place", "attribute", "spectral norm"])
def test_an_optimizer_with_a_closure(kind):
    model, _, sharp, hand = pair(kind)
    optimizer = SharpOptimizer(sharp)
    for x in batches(3):

        def closure():
            optimizer.zero_grad()
            value = loss(model, x)
            value.backward()
            return value

        optimizer.step(closure)
        hand.step([x])
        agree(model, hand)


@pytest.mark.parametrize("kind", SORTS)
def test_a_look_through_perturbed_leaves_no_trace(kind):
    model, _, sharp, _ = pair(kind)
    for x in batches(2):
        loss(model, x).backward()
        before = state(model)
        with sharp.perturbed(), torch.no_grad():
            loss(model, x)
        assert far(state(model), before) == 0.0


@pytest.mark.parametrize("kind", [k for k in SORTS if k != "recurrent"])  # its state has a row for each sample
def test_a_cheap_look_leaves_no_trace(kind):
    """SAM on two samples: its direction is that of a fresh copy, and the one pass over the batch moves the state."""
    model, twin = KINDS[kind](), KINDS[kind]()
    optimizer = torch.optim.SGD(trained(model), lr=LR)
    sharp = steppe.SAM(model, optimizer, rho=RHO, samples=2)
    hand = ByHand(twin)
    for x in batches(3):
        sharp.backward(lambda part: loss(model, part), x)
        clean, _ = hand._pass(copy.deepcopy(hand.model), [x[:2]])
        length = torch.sqrt(sum((g.double() ** 2).sum() for g in clean))
        eps = [RHO * g / length for g in clean]
        weights = [p.detach().clone() for p in trained(hand.model)]
        with torch.no_grad():
            for p, e in zip(trained(hand.model), eps, strict=True):
                p += e
        wanted, _ = hand._pass(hand.model, [x])
        with torch.no_grad():
            for p, w, g in zip(trained(hand.model), weights, wanted, strict=True):
                p.copy_(w - LR * g)
        grads_agree(model, wanted)
        optimizer.step()
        optimizer.zero_grad()
        agree(model, hand)
