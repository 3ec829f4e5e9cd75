"""A selection beside other parts and other loops: what goes together, what is left alone, and what is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.problems import BATCH, batches, everything, grads, loss_of, net, same, train, weights
from torch import nn
from torch.utils.checkpoint import checkpoint

import steppe
from steppe import Sparse
from steppe.integrations.closure import SharpOptimizer

HALF = Sparse(s=0.5, step_size=0.01)


def make(model: nn.Module | None = None, **parts: Any) -> tuple[Any, torch.optim.Optimizer, Any]:
    model = model or net()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    return model, optimizer, steppe.SharpnessAware(model, optimizer, **{"select": HALF} | parts)


TOGETHER: dict[str, dict[str, Any]] = {
    "RST": {"schedule": steppe.Bernoulli(0.5)},
    "no ascent at all": {"schedule": steppe.Bernoulli(0.0)},
    "LookSAM": {"schedule": steppe.Every(3), "combine": steppe.Reuse(0.3)},
    "GSAM": {"combine": steppe.SurrogateGap(0.4)},
    "WSAM": {"combine": steppe.Decoupled(0.5)},
    "AE-SAM": {"schedule": steppe.AboveNorm(12)},
    "F-SAM": {"ascent": steppe.Ascent(0.05, steppe.Friendly())},
    "ASAM by layers": {"ascent": steppe.Ascent(0.5, metric=steppe.Adaptive(), scope="trust")},
    "normalisation layers": {"ascent": steppe.Ascent(0.05, subset="norm")},
    "few samples": {"ascent": steppe.Ascent(0.05), "look": steppe.Look(3)},
    "blocks": {"select": Sparse(0.5, level="block")},
}


@pytest.mark.parametrize("case", TOGETHER)
def test_it_goes_with_every_other_part_and_is_resumed(case: str) -> None:
    model, optimizer, sharp = make(**TOGETHER[case])
    shares = []
    for batch in batches(12):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        sharp.backward(loss_of(model), batch)
        active = {n for n, g in grads(model).items() if g is not None}
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} <= active
        optimizer.zero_grad()
        shares.append(len(active) / 11)
    assert 0.25 < sum(shares) / 12 < 0.75 and sharp.step == 12
    assert len(set(sharp.memory["select"]["p"].values())) > 1, "steps without an ascent teach too"
    twin, twin_optimizer, other = make(**TOGETHER[case])
    twin.load_state_dict(model.state_dict())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(sharp.state_dict())
    assert same(train(model, optimizer, sharp, 3), train(twin, twin_optimizer, other, 3))


def test_steps_without_an_ascent_are_the_sparse_base() -> None:
    """rho = 0 equals the plain optimizer on the tensors drawn."""
    model, optimizer, sharp = make(ascent=steppe.Ascent(0.0))
    twin = net()
    twin_optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], lr=0.01)
    for batch in batches(6):
        torch.manual_seed(sharp.step)
        sharp.backward(loss_of(model), batch)
        torch.manual_seed(sharp.step)
        loss_of(twin)(batch).backward()
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.grad = None if mine.grad is None else theirs.grad
        for o in (optimizer, twin_optimizer):
            o.step()
            o.zero_grad()
    assert same(everything(model), everything(twin))


def test_the_norms_of_accumulated_pieces_are_the_last_ones() -> None:
    """As all memory in m-sharpness: two pieces, of which the second decides."""
    halves = [(BATCH[0][:4], BATCH[1][:4]), (BATCH[0][4:], BATCH[1][4:])]
    found = []
    for pieces in (halves, halves[1:]):
        model, optimizer, sharp = make(net(dropout=0))
        model.norm.eval()
        for piece in pieces:
            sharp.backward(loss_of(model), piece)
        optimizer.step()
        found.append(sharp.memory["select"]["p"])
    assert found[0] == found[1]


def test_a_tensor_outside_of_the_optimizer_keeps_its_gradient_and_its_flag() -> None:
    model = net(dropout=0)
    mine = [p for n, p in model.named_parameters() if not n.startswith("last") and p.requires_grad]
    optimizer = torch.optim.SGD(mine, lr=0.1)
    sharp = steppe.SLSAM(model, optimizer, s=0.2)
    sharp.backward(loss_of(model), BATCH)
    assert model.last.weight.grad is not None and model.last.bias.grad is not None
    optimizer.step()
    assert not any(n.startswith("last") for n in sharp.memory["select"]["p"])
    assert sum(sharp.memory["select"]["p"].values()) == pytest.approx(0.2 * len(mine))


def test_what_is_frozen_in_the_middle_leaves_the_draw_and_may_come_back() -> None:
    model, optimizer, sharp = make()
    train(model, optimizer, sharp, 3)
    model.first.requires_grad_(False)
    train(model, optimizer, sharp, 3)
    assert not any(n.startswith("first") for n in sharp.memory["select"]["p"])
    assert not model.first.weight.requires_grad
    model.first.requires_grad_(True)
    train(model, optimizer, sharp, 1)
    p = sharp.memory["select"]["p"]
    assert "first.weight" in p and sum(p.values()) == pytest.approx(0.5 * len(p))


def test_zeros_or_gradients_of_ones_own_on_what_is_inactive_do_not_reach_the_optimizer() -> None:
    """zero_grad(set_to_none=False) leaves zeros, by which weight decay and momentum would move a weight."""
    model, optimizer, sharp = make(select=Sparse(0.2))
    loss_of(model)(BATCH).backward()
    optimizer.zero_grad(set_to_none=False)
    sharp.backward(loss_of(model), BATCH)
    p = dict(model.named_parameters())
    assert 0 < sum(x.grad is not None for x in p.values()) < 9


class Unused(nn.Module):
    """A linear layer, and another that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used, self.spare = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def drawing(part: str) -> tuple[nn.Module, torch.optim.Optimizer, steppe.SharpnessAware]:
    """A step that draws that part alone."""
    model = Unused().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sharp = steppe.SLSAM(model, optimizer, level="block")
    sharp.memory = {"select": {"p": {"used": 1e-9, "spare": 1e-9} | {part: 1.0}}}
    return model, optimizer, sharp


def test_a_step_whose_draw_the_loss_does_not_see_moves_nothing_and_says_so() -> None:
    model, optimizer, sharp = drawing("spare")
    before = everything(model)
    with pytest.warns(UserWarning, match=r"none of the selected \['spare'\] takes part in the loss"):
        loss = sharp.backward(loss_of(model), BATCH)
    optimizer.step()
    assert same(before, everything(model)) and sharp.step == 1
    assert loss == loss_of(model)(BATCH).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, optimizer, sharp = drawing("used")
        sharp.backward(loss_of(model), BATCH)
    assert model.used.weight.grad is not None and model.spare.weight.grad is None


def test_a_unit_that_the_loss_does_not_see_is_drawn_less_and_less() -> None:
    model = Unused().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sharp = steppe.SLSAM(model, optimizer, level="block", s=0.5, step_size=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(40):
            sharp.backward(loss_of(model), BATCH)
            optimizer.step()
            optimizer.zero_grad()
    p = sharp.memory["select"]["p"]
    assert p["spare"] < 0.1 and p["used"] > 0.9 and sum(p.values()) == pytest.approx(1.0)


def test_a_backward_of_the_hosts_own_without_a_graph_is_explained() -> None:
    model, _, sharp = drawing("spare")

    def own() -> torch.Tensor:
        loss = loss_of(model)(BATCH)
        loss.backward()
        return loss.detach().requires_grad_()

    with pytest.raises(
        RuntimeError, match=r"none of the selected \['spare'\] takes part.*freeze what the loss"
    ) as error:
        sharp.backward(own, backward=lambda loss: None)
    assert "\n" not in str(error.value) and all(p.requires_grad for p in model.parameters())


def test_a_loss_that_is_always_detached_is_refused_where_all_is_active() -> None:
    model, _, sharp = make(select=Sparse(1.0))
    with pytest.raises(ValueError, match="no graph behind it"):
        sharp.backward(lambda: loss_of(model)(BATCH).detach())


def test_the_closure_adapter_takes_sparse_steps() -> None:
    model, inner, sharp = make(select=Sparse(0.3))
    optimizer = SharpOptimizer(sharp)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)(BATCH)
        loss.backward()
        return loss

    optimizer.step(closure)
    active = {n for n, g in grads(model).items() if g is not None}
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == active
    assert 0 < len(active) < 11 and sharp.step == 1 and len(inner.state) == len(active)


def test_looking_at_the_perturbed_loss_is_about_the_gradients_that_are_there() -> None:
    model, _, sharp = make(select=Sparse(0.3))
    sharp.backward(loss_of(model), BATCH)
    active = {n for n, g in grads(model).items() if g is not None}
    before = everything(model)
    with sharp.perturbed():
        assert {n for n in active if not torch.equal(model.get_parameter(n), before[n])} == active
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n not in active)
    assert same(weights(before), weights(everything(model)))


def test_checkpointed_activations_give_the_same_gradient() -> None:
    """The forward that is run again in the backward sees the same selection."""
    results = []
    for kept in (True, False):
        torch.manual_seed(0)
        layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(6)).double()
        sharp = steppe.SLSAM(layers, torch.optim.SGD(layers.parameters(), lr=0.1), s=0.3, seed=4)

        def loss(layers: nn.ModuleList = layers, kept: bool = kept) -> torch.Tensor:
            x = BATCH[0]
            for layer in layers:
                x = torch.tanh(layer(x) if kept else checkpoint(layer, x, use_reentrant=False))
            return x.square().mean()

        sharp.backward(loss)
        results.append({n: g for n, g in grads(layers).items() if g is not None})
    assert 0 < len(results[0]) < 12 and same(*results)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a share for a part": ({"select": 0.2}, TypeError, "select=0.2 was given; expected a steppe Select part"),
    "a class for a part": ({"select": Sparse}, TypeError, "expected a steppe Select part such as Sparse("),
    "another kind of part": ({"select": steppe.Always()}, TypeError, "expected a steppe Select part"),
    "a direction of the step before": (
        {"ascent": steppe.Ascent(direction=steppe.Previous())}, ValueError, "expected a direction made of this step's"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_go_together_is_refused_in_one_sentence(case: str) -> None:
    parts, kind, words = REFUSED[case]
    with pytest.raises(kind) as error:
        make(**parts)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_the_phases_are_refused() -> None:
    model, _, sharp = make()
    loss_of(model)(BATCH).backward()
    with pytest.raises(RuntimeError, match=r"ascend\(\) cannot switch parameters off in a pass that it does not run"):
        sharp.ascend()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
