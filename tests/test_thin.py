"""A random subset of the weights: drawn elementwise from (seed, step), scaled so that the mean is the whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.problems import BATCH, batches, by_hand, close, everything, grads, loss_of, make, net, same, train, weights
from torch import Tensor, nn

import steppe
from steppe._thin import thin_


def thinned(beta: float, seed: int = 0, step: int = 0, **kind: Any) -> list[Tensor]:
    eps = [torch.ones(300, **kind), torch.ones(20, 30, **kind), torch.ones((), **kind)]
    thin_(eps, beta, seed, step)
    return eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.5, 0.25])
def test_every_entry_is_zero_or_the_whole_over_beta(beta: float, dtype: torch.dtype) -> None:
    for e in thinned(beta, dtype=dtype):
        assert set(e.flatten().tolist()) <= {0.0, 1 / beta}


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_the_mean_over_steps_is_the_whole(beta: float) -> None:
    mean = sum(torch.cat([e.flatten() for e in thinned(beta, step=t)]) for t in range(400)) / 400
    spread = ((1 - beta) / beta / 400) ** 0.5  # of one entry's mean
    assert abs(float(mean.mean()) - 1) < 5 * spread / 901**0.5  # type: ignore[union-attr]
    assert float((mean - 1).abs().max()) < 5.5 * spread  # type: ignore[union-attr, operator]


def test_one_draws_nothing_and_leaves_the_bits() -> None:
    eps = [torch.tensor([0.1, -3.0, float("nan")])]
    kept = eps[0].clone()
    thin_(eps, 1.0, 0, 0)
    assert torch.equal(eps[0].view(torch.int32), kept.view(torch.int32))


def test_it_is_a_function_of_seed_and_step_and_leaves_the_generator() -> None:
    before = torch.get_rng_state()
    first, again = thinned(0.5, 3, 7), thinned(0.5, 3, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (thinned(0.5, 3, 8), thinned(0.5, 4, 7)):
        assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0][:30], first[1].flatten()[:30]), "tensors draw on, not each anew"
    assert torch.equal(before, torch.get_rng_state())


def moved(beta: float, **parts: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """eps of one step by what the weights moved, and the gradient that it leaves."""
    model = net(dropout=0)
    _, sharp = make(model, ascent=steppe.Ascent(0.3, beta=beta, **parts))
    before, seen = everything(model), list[dict[str, Tensor]]()

    def closure() -> Tensor:
        seen.append({n: p.detach() - before[n] for n, p in model.named_parameters()})
        return loss_of(model)(BATCH)

    sharp.backward(closure)
    assert same(weights(before), weights(everything(model)))
    return seen[-1], {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [{}, {"scope": "trust"}, {"metric": steppe.Adaptive()}])
def test_what_moves_moves_by_eps_over_beta(parts: dict[str, Any]) -> None:
    whole, _ = moved(1.0, **parts)
    half, _ = moved(0.5, **parts)
    kept = total = 0
    for n, e in whole.items():
        still = half[n] == 0
        torch.testing.assert_close(half[n][~still], 2 * e[~still], rtol=1e-9, atol=1e-12)
        kept += int((~still).sum())
        total += int((e != 0).sum())
    assert 0.35 < kept / total < 0.65


def test_every_step_of_a_training_draws_a_subset_of_its_own() -> None:
    model = net(dropout=0)
    optimizer, sharp = make(model, ascent=steppe.Ascent(0.3, beta=0.5), seed=2)
    still = []
    for batch in batches(3):
        before, seen = everything(model), list[dict[str, Tensor]]()

        def closure(b: Any = batch, before: Any = before, seen: Any = seen) -> Tensor:
            seen.append({n: (p.detach() == before[n]).flatten() for n, p in model.named_parameters()})
            return loss_of(model)(b)

        sharp.backward(closure)
        optimizer.step()
        optimizer.zero_grad()
        still.append(torch.cat([s for n, s in seen[-1].items() if "frozen" not in n]))
    assert not torch.equal(still[0], still[1]) and not torch.equal(still[1], still[2])


def test_beta_one_is_sam_and_less_is_not() -> None:
    _, whole = moved(1.0)
    model = net(dropout=0)
    expected = {n: g for n, g in by_hand(model, BATCH, rho=0.3).items() if g is not None}
    close(whole, expected)  # type: ignore[arg-type]
    _, half = moved(0.5)
    assert any(not torch.allclose(half[n], g) for n, g in whole.items())


@pytest.mark.parametrize(
    ("ascent", "look"), [({"direction": steppe.Momentum()}, None), ({}, steppe.Look(2)), ({}, None)]
)
def test_it_resumes_and_composes(ascent: dict[str, Any], look: steppe.Look | None) -> None:
    def built() -> tuple[nn.Module, Any, Any]:
        model = net()
        return model, *make(model, ascent=steppe.Ascent(0.2, beta=0.6, **ascent), look=look, seed=5)

    model, optimizer, sharp = built()
    train(model, optimizer, sharp, 4)
    other, again, state = built()
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch shares the buffers otherwise
    state.load_state_dict(sharp.state_dict())
    assert state.ascent.beta == 0.6 and same(train(model, optimizer, sharp, 3), train(other, again, state, 3))


def test_the_phases_and_micro_batches_have_one_subset_per_step() -> None:
    results = []
    for phases in (False, True):
        model = net(dropout=0)
        _, sharp = make(model, ascent=steppe.Ascent(0.3, beta=0.5))
        if phases:
            sharp.mark()
            loss_of(model)(BATCH).backward()
            assert sharp.ascend()
            loss_of(model)(BATCH).backward()
            sharp.restore()
        else:
            sharp.backward(loss_of(model), BATCH)
        results.append(grads(model))
    close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0, -0.1, 1.5, float("nan"), "half", True])
def test_bad_shares_are_refused_in_one_sentence(beta: Any) -> None:
    with pytest.raises(ValueError, match="beta=.* was given; expected a number") as error:
        steppe.Ascent(beta=beta)
    assert "\n" not in str(error.value)
