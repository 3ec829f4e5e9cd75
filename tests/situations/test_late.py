"""Where a copy was not made in time: said once, and right from the next step on."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.situations.by_hand import LR, RHO, ByHand, batches, far, loss, trained
from tests.situations.stateful import KINDS, LARGE, Attribute, Reading
from torch import nn

import steppe
from steppe import _state


class Late(Reading):
    """A large queue that is filled from its fifth batch on."""

    def __init__(self):
        super().__init__(LARGE)
        self.calls = 0

    def move(self, new):
        self.calls += 1
        if self.calls > 4:
            self.q.copy_(new)


class OfEncoder(Reading):
    """The same in a frozen parameter, larger than all that is trained: not copied without having been seen to move."""

    def __init__(self):
        super().__init__(LARGE)

    def start(self, q):
        self.q = nn.Parameter(q, requires_grad=False)


class Quantised(Reading):
    """Likewise in a buffer: what an adapter stands on may be none of the parameters."""

    def __init__(self):
        super().__init__(LARGE)


def steps(model, count):
    """The difference from the loop by hand, and the warnings, of each step."""
    hand = ByHand(type(model)())
    optimizer = torch.optim.SGD(trained(model), lr=LR)
    sharp = steppe.SAM(model, optimizer, rho=RHO)
    found = []
    for x in batches(count):
        with torch.no_grad():  # each step by itself
            for p, q in zip(trained(hand.model), trained(model), strict=True):
                p.copy_(q)
            hand.model.q.copy_(model.q)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sharp.backward(lambda: loss(model, x))
        wanted = hand.step([x])
        said = [str(w.message) for w in caught]
        found.append(
            (far([p.grad for p in trained(model)], wanted), far(model.q.detach(), hand.model.q.detach()), said)
        )
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize(("kind", "at"), [(Late, 4), (OfEncoder, 0), (Quantised, 0)])
def test_a_large_tensor_that_is_written_late(monkeypatch, kind, at):
    if kind is Quantised:
        monkeypatch.setattr(_state, "ROOM", 0)
    for step, (grads, state, said) in enumerate(steps(kind(), 8)):
        assert (grads > 1e-6) == (step == at)
        assert state <= 1e-10  # what stays is what the first pass left in any case
        named = [s for s in said if f"{kind.__name__}.q in place for the first time" in s]
        assert len(named) == len(said) == (step == at)


@pytest.mark.parametrize("kind", [Reading, Attribute])
def test_phases_without_a_mark_name_what_moved(kind):
    model = kind()
    sharp = steppe.SAM(model, torch.optim.SGD(trained(model), lr=LR), rho=RHO)
    (x,) = batches(1)
    loss(model, x).backward()
    sharp.ascend()
    left = model.q.clone()
    loss(model, x).backward()
    with pytest.warns(UserWarning, match=rf"first left in {kind.__name__}\.q; call sharp.mark\(\)"):
        sharp.restore()
    assert torch.equal(model.q, left)


def test_batch_norm_needs_no_mark():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=LR), rho=RHO)
    (x,) = batches(1)
    loss(model, x).backward()
    sharp.ascend()
    loss(model, x).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharp.restore()


@pytest.mark.parametrize("kind", ["large", "large, through data", "in place"])
def test_a_copy_of_the_method_begins_anew(kind):
    """A deep copy of model, optimizer and method goes on alike, each with its own state."""
    import copy

    model = KINDS[kind]()
    optimizer = torch.optim.SGD(trained(model), lr=LR)
    sharp = steppe.SAM(model, optimizer, rho=RHO)
    xs = batches(3)
    sharp.backward(lambda: loss(model, xs[0]))
    other, _, twin = copy.deepcopy((model, optimizer, sharp))
    for m, s in ((model, sharp), (other, twin)):
        for p in trained(m):
            p.grad = None
        for x in xs[1:]:
            s.backward(lambda: loss(m, x))
    assert far([p.grad for p in trained(model)], [p.grad for p in trained(other)]) == 0.0
    assert torch.equal(model.q, other.q)
