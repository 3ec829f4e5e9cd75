"""A look at the samples of the highest loss: which they are, what it costs, and what must not move."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.problems import BATCH, batches, close, everything, grads, losses_of, make, net, same, weights
from torch import Tensor, nn

import steppe

RHO = 0.5
HARD = steppe.Look(3, chosen="hardest")


def parts(hardest: float | None = None, look: steppe.Look = HARD, **more: Any) -> dict[str, Any]:
    return {"ascent": steppe.Ascent(RHO), "look": look, "hardest": hardest} | more


def rows_of(model: nn.Module, batch: Any, count: int) -> list[int]:
    """The numbers of the samples with the highest loss, in order."""
    with torch.no_grad():
        each = losses_of(copy.deepcopy(model))(batch).tolist()
    return sorted(sorted(range(len(each)), key=each.__getitem__)[-count:])


def cut(batch: Any, rows: list[int]) -> Any:
    return batch[0][rows], batch[1][rows]


class Seen:
    """A loss that notes each call: its batch, whether a graph was built, and the weights."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.calls = model, list[tuple[Any, bool, Tensor]]()

    def __call__(self, batch: Any) -> Tensor:
        self.calls.append((batch, torch.is_grad_enabled(), self.model.last.weight.detach().clone()))
        return losses_of(self.model)(batch)


def test_the_few_are_those_of_the_highest_loss_and_the_descent_sees_all_or_the_hardest() -> None:
    for hardest, last in ((None, 8), (0.5, 4), (1.0, 8)):
        model = net(dropout=0)
        f = Seen(model)
        few, descent = rows_of(model, BATCH, 3), rows_of(model, BATCH, last)
        whole = losses_of(copy.deepcopy(model))(BATCH).mean()
        _, sharp = make(model, **parts(hardest))
        loss = sharp.backward(f, BATCH)
        assert [(len(batch[0]), graph) for batch, graph, _ in f.calls] == [(8, False), (3, True), (last, True)]
        assert torch.equal(f.calls[1][0][0], BATCH[0][few]) and torch.equal(f.calls[2][0][1], BATCH[1][descent])
        torch.testing.assert_close(loss, whole.detach(), rtol=1e-12, atol=0)
        assert (sharp.last.perturbed_loss is None) is (hardest == 0.5), "of all samples, or not known"
        assert (sharp.last.surrogate_gap is None) is (hardest == 0.5)


def test_each_micro_batch_chooses_its_own() -> None:
    model = net(dropout=0)
    f, pieces = Seen(model), [(BATCH[0][:5], BATCH[1][:5]), (BATCH[0][5:], BATCH[1][5:])]
    chosen = [rows_of(model, piece, 2) for piece in pieces]
    _, sharp = make(model, **parts(look=steppe.Look(2, chosen="hardest")))
    sharp.backward(f, micro_batches=pieces)
    for piece, rows, (batch, _, _) in zip(pieces, chosen, f.calls[2:4], strict=True):
        assert torch.equal(batch[0], cut(piece, rows)[0])


def test_of_all_samples_it_is_sam_of_the_mean() -> None:
    one, other = net(dropout=0), net(dropout=0)
    _, sharp = make(one, **parts(1.0, steppe.Look(8, chosen="hardest")))
    sharp.backward(losses_of(one), BATCH)
    _, sam = make(other, ascent=steppe.Ascent(RHO))
    sam.backward(lambda b: losses_of(other)(b).mean(), BATCH)
    close(grads(one), grads(other))


def test_with_maximize_the_hardest_are_those_of_the_lowest_objective() -> None:
    one, other = net(dropout=0), net(dropout=0)
    for model, sign in ((one, 1.0), (other, -1.0)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=sign < 0)
        sharp = steppe.SharpnessAware(model, optimizer, **parts(0.5))
        sharp.backward(lambda b, m=model, s=sign: s * losses_of(m)(b), BATCH)
    close(grads(one), {n: None if g is None else -g for n, g in grads(other).items()})


@pytest.mark.parametrize("level", [None, -50.0, 50.0], ids=["always", "waits, ascends", "waits, does not"])
def test_the_look_leaves_no_trace_and_draws_the_masks_of_the_pass_over_the_batch(level: float | None) -> None:
    """Also under a schedule that decides by the gradient of the look."""
    model, masks = net(), list[Tensor]()
    model.drop.register_forward_hook(lambda module, inputs, output: masks.append(output.detach() == 0))
    schedule = None if level is None else steppe.AboveNorm(9, level, level)
    _, sharp = make(model, **parts(schedule=schedule))
    torch.manual_seed(3)
    sharp.backward(losses_of(model), BATCH)
    after = torch.get_rng_state()
    assert sharp.last.ascended is (level != 50)
    assert [len(m) for m in masks] == [8, 3, 8] and torch.equal(masks[0], masks[2])
    plain = net()
    torch.manual_seed(3)
    losses_of(plain)(BATCH)
    assert torch.equal(after, torch.get_rng_state()), "the generator has moved as by one pass"
    plain.load_state_dict(net().state_dict())
    plain(BATCH[0])
    left, of_all_at_w = ({k: v for k, v in everything(m).items() if "norm" in k} for m in (model, plain))
    assert same(left, of_all_at_w)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_weights_are_exact_after_an_error_in_any_pass(at: int) -> None:
    model = net(dropout=0)
    _, sharp = make(model, **parts(0.5))
    before, calls = weights(everything(model)), 0

    def fails(batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise MemoryError
        return losses_of(model)(batch)

    with pytest.raises(MemoryError):
        sharp.backward(fails, BATCH)
    assert same(weights(everything(model)), before)


def test_it_composes_with_a_mixture_and_a_view() -> None:
    """g is of the whole batch, by a pass of its own; the view is of the chosen."""
    model = net(dropout=0)
    f, doubled = Seen(model), list[int]()

    def view(batch: Any) -> Any:
        doubled.append(len(batch[0]))
        return batch[0] * 2, batch[1]

    look = steppe.Look(3, view, chosen="hardest")
    optimizer, sharp = make(model, **parts(look=look, combine=steppe.Mix(0.5)))
    for batch in batches(2):
        sharp.backward(f, batch)
        optimizer.step()
        optimizer.zero_grad()
    assert [len(batch[0]) for batch, _, _ in f.calls] == [8, 3, 8, 8] * 2 and doubled == [3, 3]


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: steppe.Look(chosen="hardest"), "chosen='hardest' was given without samples; expected"),
        (lambda: steppe.Look(2, chosen="last"), "chosen='last' was given; expected"),
        (lambda: make(net(), **parts(0.5, steppe.Look(3))), "expected no look, or one with chosen='hardest'"),
        (lambda: make(net(), ascent=steppe.Ascent(direction=steppe.Previous()), look=HARD), "expected no look"),
        (lambda: make(net(), **parts())[1].backward(lambda b: losses_of(net())(b).sum(), BATCH), "one loss per sample"),
        (lambda: make(net(), **parts())[1].backward(lambda: torch.ones(8)), r"expected backward\(loss_of, batch\)"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(build: Any, sentence: str) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        build()
