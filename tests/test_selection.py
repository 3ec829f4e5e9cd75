"""A selection at work: what is not selected is not touched, nothing is computed for it, and all comes back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import BASES, BATCH, batches, by_hand, close, everything, grads, loss_of, net, same, train, weights
from tests.reference import sparse
from torch import Tensor, nn

import steppe
from steppe import Sparse

TWO = Sparse(s=0.3)


def built(select: Any = TWO, base: str = "adamw", **parts: Any) -> tuple[Any, torch.optim.Optimizer, Any]:
    model = net(dropout=parts.pop("dropout", 0.25))
    optimizer = BASES[base](model)
    return model, optimizer, steppe.SharpnessAware(model, optimizer, select=select, **parts)


def with_gradient(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.grad is not None}


def trainable(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def drawn(sharp: Any, model: nn.Module) -> set[str]:
    """What the step should be about, by the reference's draw."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    p = sharp.memory.get("select", {}).get("p", dict.fromkeys(names, sharp.select.s))
    return set(sparse.draw(sharp.seed, sharp.step, names, p))


@pytest.mark.parametrize("base", BASES)
def test_an_inactive_weight_and_its_moments_are_untouched_bit_for_bit(base: str) -> None:
    model, optimizer, sharp = built(base=base)
    seen: set[str] = set()
    for batch in batches(12):
        expected = drawn(sharp, model)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        state = {n: copy.deepcopy(optimizer.state.get(p, {})) for n, p in model.named_parameters()}
        sharp.backward(loss_of(model), batch)
        assert with_gradient(model) == expected
        optimizer.step()
        for n, p in model.named_parameters():
            moved = not torch.equal(p, before[n])
            assert moved == (n in expected), n
            if n not in expected:
                mine = optimizer.state.get(p, {})
                assert mine.keys() == state[n].keys()
                assert all(torch.equal(mine[k], state[n][k]) for k in mine if isinstance(mine[k], Tensor))
        optimizer.zero_grad()
        seen |= expected
    assert seen == trainable(model), "over 12 steps each tensor had its turn"


def test_the_gradient_is_sams_of_the_selected_tensors_with_the_others_held() -> None:
    model, _, sharp = built(dropout=0)
    active = drawn(sharp, model)
    twin = copy.deepcopy(model)
    for n, p in twin.named_parameters():
        p.requires_grad_(n in active)
    sharp.backward(loss_of(model), BATCH)
    close(grads(model), by_hand(twin, BATCH))


def test_what_required_a_gradient_does_again_and_what_was_frozen_stays_frozen() -> None:
    model, _, sharp = built()
    before = trainable(model)
    assert "frozen.weight" not in before
    during: list[set[str]] = []

    def closure() -> Tensor:
        during.append(trainable(model))
        return loss_of(model)(BATCH)

    sharp.backward(closure)
    assert trainable(model) == before
    assert during == [drawn(sharp, model)] * 2 and not any("frozen" in n for n in during[0])


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_in_either_pass_all_is_as_it_was(failing: int, error: type[BaseException]) -> None:
    model, optimizer, sharp = built()
    loss_of(model)(BATCH).backward()  # gradients of the user's own
    before, mine, calls = everything(model), grads(model), 0
    wanted = trainable(model)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error("no memory left")
        return loss_of(model)(BATCH)

    with pytest.raises(error, match="no memory left"):
        sharp.backward(closure)
    assert trainable(model) == wanted
    assert same(weights(before), weights(everything(model)))
    close(grads(model), mine, rtol=0.0, atol=0.0)
    optimizer.zero_grad()
    sharp.backward(loss_of(model), BATCH)
    assert with_gradient(model) == drawn(sharp, model), "and the next backward is as ever"


@pytest.mark.parametrize("base", BASES)
def test_s_one_is_sam_bit_for_bit(base: str) -> None:
    results = []
    for make in (lambda m, o: steppe.SLSAM(m, o, rho=0.05, s=1.0), lambda m, o: steppe.SAM(m, o, rho=0.05)):
        model = net()
        optimizer = BASES[base](model)
        results.append(train(model, optimizer, make(model, optimizer)))
    assert same(*results)


class Counted(torch.autograd.Function):
    """x W', which writes down when its backward runs and for which of x and W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, log: list[tuple[int, bool, bool]], number: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.log, ctx.number = log, number
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        ctx.log.append((ctx.number, wants_x, wants_weight))
        return grad @ weight if wants_x else None, grad.T @ x if wants_weight else None, None, None


SEEN: list[tuple[int, bool, bool]] = []  # in the module it would be rewound between the passes


class Deep(nn.Module):
    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ParameterList([nn.Parameter(torch.randn(4, 4, dtype=torch.float64) / 2) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        for i, weight in enumerate(self.layers):
            x = torch.tanh(Counted.apply(x, weight, SEEN, i))
        return x


def test_no_gradient_is_computed_for_what_is_inactive_and_nothing_below_the_earliest_active() -> None:
    model = Deep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SLSAM(model, optimizer, s=0.2, seed=2)
    shares = []
    for _ in range(20):
        active = {int(n.split(".")[1]) for n in drawn(sharp, model)}
        SEEN.clear()
        sharp.backward(lambda: model(torch.ones(3, 4, dtype=torch.float64)).square().mean())
        one_pass = [(i, i > min(active), i in active) for i in range(7, min(active) - 1, -1)]
        assert SEEN == 2 * one_pass
        shares.append(len(active) / 8)
        optimizer.step()
        optimizer.zero_grad()
    assert 0.1 < sum(shares) / 20 < 0.45


def test_less_is_kept_for_the_backward() -> None:
    """Bytes that the forward saves, of a deep network of which the last layer alone is active."""

    def saved(model: nn.Module, backward: Callable[[Callable[[], Tensor]], Any]) -> int:
        total = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            backward(lambda: model(torch.ones(64, 16)).square().mean())
        return total

    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(16)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    full = saved(model, steppe.SAM(model, optimizer).backward)
    sharp = steppe.SLSAM(model, optimizer, level="block", seed=1)
    sharp.memory = {"select": {"p": {str(i): 1.0 if i == 15 else 1e-3 for i in range(16)}}}
    assert saved(model, sharp.backward) < full / 5
    assert with_gradient(model) == {"15.weight", "15.bias"}


def test_one_selection_per_optimizer_step_whichever_way_the_batch_comes() -> None:
    halves = [(BATCH[0][:4], BATCH[1][:4]), (BATCH[0][4:], BATCH[1][4:])]
    model, optimizer, sharp = built(dropout=0)
    expected = drawn(sharp, model)
    sharp.backward(loss_of(model), micro_batches=halves)
    assert with_gradient(model) == expected
    optimizer.zero_grad()
    for half in halves:
        sharp.backward(loss_of(model), half)
        assert with_gradient(model) == expected
    optimizer.step()
    assert sharp.step == 1 and set(sharp.memory["select"]["p"]) == trainable(model)
    optimizer.zero_grad()
    assert drawn(sharp, model) != expected


def test_the_probabilities_move_with_the_real_step_alone() -> None:
    model, optimizer, sharp = built()
    expected = drawn(sharp, model)
    for _ in range(2):  # an abandoned step, and a second try of the same
        sharp.backward(loss_of(model), BATCH)
        assert with_gradient(model) == expected and "select" not in sharp.memory
        optimizer.zero_grad()
    sharp.backward(loss_of(model), BATCH)
    optimizer.step()
    p = sharp.memory["select"]["p"]
    assert math.isclose(sum(p.values()), 0.3 * len(p), rel_tol=1e-12) and len(set(p.values())) > 1
    assert all(type(x) is float for x in p.values())


def test_the_norms_are_those_of_the_first_pass_without_the_loss_scale() -> None:
    found = []
    for scale in (None, 1024.0):
        model, optimizer, sharp = built(Sparse(0.5, step_size=0.1), dropout=0)
        sharp.backward(loss_of(model), BATCH, backward=scale and (lambda loss, s=scale: (loss * s).backward()))
        optimizer.step()
        found.append(sharp.memory["select"]["p"])
    assert found[0] == found[1]
    fresh, _, sharp = built(Sparse(0.5, step_size=0.1), dropout=0)
    names = [n for n, p in fresh.named_parameters() if p.requires_grad]
    loss_of(fresh)(BATCH).backward()
    norms = {n: float(fresh.get_parameter(n).grad.norm()) for n in names if n in drawn(sharp, fresh)}
    assert found[0] == pytest.approx(sparse.exp3(dict.fromkeys(names, 0.5), norms, 0.5, 0.1, 1e-3), rel=1e-9)


def test_an_overflow_under_a_grad_scaler_changes_nothing() -> None:
    model, optimizer, sharp = built()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    expected, before = drawn(sharp, model), everything(model)

    def run(factor: float) -> None:
        sharp.backward(lambda: loss_of(model)(BATCH) * factor, backward=lambda loss: scaler.scale(loss).backward())
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    run(math.inf)
    assert sharp.step == 0 and not sharp.memory and same(weights(before), weights(everything(model)))
    assert drawn(sharp, model) == expected
    run(1.0)
    assert sharp.step == 1 and sharp.memory["select"]["p"]


@pytest.mark.parametrize("level", ["tensor", "block", lambda name: name.split(".")[0]])
def test_resumed_equals_uninterrupted(level: Any) -> None:
    model, optimizer, sharp = built(Sparse(0.4, level, step_size=0.1))
    train(model, optimizer, sharp, 5)
    twin, twin_optimizer, other = built(Sparse(0.4, level, step_size=0.1))
    twin.load_state_dict(model.state_dict())
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(copy.deepcopy(sharp.state_dict()))
    assert other.select == sharp.select
    assert same(train(model, optimizer, sharp, 7), train(twin, twin_optimizer, other, 7))
    assert sharp.state_dict() == other.state_dict()


def test_a_loss_with_a_derivative_by_what_is_left_out_is_refused_in_a_sentence() -> None:
    model, _, sharp = built()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def penalised() -> Tensor:
        loss = loss_of(model)(BATCH)
        every = [p for p in model.parameters() if p is not model.frozen.weight and p is not model.frozen.bias]
        return loss + sum(g.square().sum() for g in torch.autograd.grad(loss, every, create_graph=True))

    with pytest.raises(RuntimeError, match="parameters that this step leaves out .*chose .* of"):
        sharp.backward(penalised)
    assert same(before, dict(model.named_parameters())) and trainable(model) == trainable(net())


def test_a_state_without_a_selection_is_another_method_and_has_no_word_of_it() -> None:
    _, _, plain = built(None)
    _, _, sharp = built()
    assert "select" in sharp.state_dict() and "select" not in plain.state_dict()
    with pytest.raises(ValueError, match="another method: select is None there"):
        sharp.load_state_dict(plain.state_dict())
