"""SharpnessAware in the loop: what backward leaves in .grad."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from tests.problems import BATCH, batches, by_hand, close, everything, grads, loss_of, make, net, same, weights
from torch import Tensor, nn

import steppe


def test_backward_equals_sam_by_hand_and_returns_the_clean_loss() -> None:
    model = net(dropout=0)
    _, sharp = make(model)
    expected, clean = by_hand(model, BATCH), loss_of(model)(BATCH).item()
    loss = sharp.backward(lambda: loss_of(model)(BATCH))
    close(grads(model), expected)
    assert loss.item() == clean and not loss.requires_grad and loss.shape == ()
    assert sharp.last.ascended and sharp.last.perturbed_loss.item() > clean


@pytest.mark.parametrize("combine", [steppe.Replace(), steppe.Mix(0.8), steppe.Reuse(), steppe.SurrogateGap(0.4)])
def test_gradients_are_added_to_what_is_there(combine: steppe.Combine) -> None:
    model = net(dropout=0)
    _, sharp = make(model, combine=combine)
    sharp.backward(lambda: loss_of(model)(BATCH))
    once = grads(model)
    held = {n: p.grad for n, p in model.named_parameters()}
    sharp.backward(lambda: loss_of(model)(BATCH))
    close(grads(model), {n: None if g is None else 2 * g for n, g in once.items()})
    assert all(p.grad is held[n] for n, p in model.named_parameters()), "an earlier .grad keeps its storage"


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_that_are_slices_of_one_buffer_stay_in_it(fails: bool) -> None:
    """A loop that clips, sends or zeroes the buffer in one call."""
    model = net(dropout=0)
    _, sharp = make(model)
    sharp.backward(lambda: loss_of(model)(BATCH))
    once, calls = grads(model), 0
    flat = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    slices = flat.split([p.numel() for p in model.parameters()])
    held = {n: piece.view_as(p) for piece, (n, p) in zip(slices, model.named_parameters(), strict=True)}
    for name, p in model.named_parameters():
        p.grad = held[name]

    def loss() -> Tensor:
        nonlocal calls
        calls += 1
        if fails and calls == 2:
            raise KeyError
        return loss_of(model)(BATCH)

    with pytest.raises(KeyError) if fails else nullcontext():
        sharp.backward(loss)
    close(held, {n: torch.ones_like(held[n]) + (0 if fails or g is None else g) for n, g in once.items()})
    assert all(p.grad is held[n] for n, p in model.named_parameters())


@pytest.mark.parametrize("passes", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("combine", [steppe.Replace(), steppe.Mix(0.8), steppe.Reuse(), steppe.Decoupled(0.9)])
def test_a_parameter_without_a_gradient_in_one_pass(passes: tuple[bool, bool], combine: steppe.Combine) -> None:
    model = net(dropout=0)
    optimizer, sharp = make(model, combine=combine)
    before, use = everything(model), iter(passes)
    sharp.backward(lambda: nn.functional.cross_entropy(model(BATCH[0], next(use)), BATCH[1]))
    assert same(weights(everything(model)), weights(before))
    lost = passes == (True, False) and combine == steppe.Replace()  # g is not kept, and g~ has nothing
    assert (model.rare.weight.grad is None) == (lost or not any(passes))
    assert model.frozen.weight.grad is None
    optimizer.step()


def test_frozen_tied_and_foreign_parameters() -> None:
    model = net(dropout=0)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if "last" not in n and p.requires_grad], lr=0.1)
    sharp = steppe.SAM(model, optimizer, rho=0.5)
    seen = []

    def closure() -> Tensor:
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return loss_of(model)(BATCH)

    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    sharp.backward(closure)
    moved = seen[-1]
    assert {n for n in start if not torch.equal(start[n], moved[n])} == {
        n for n in start if "last" not in n and "frozen" not in n}  # fmt: skip
    # A trainable parameter of another optimizer gets one gradient, that of the perturbed pass, not the sum of two.
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for n, p in twin.named_parameters():
            p.copy_(moved[n])
    loss_of(twin)(BATCH).backward()
    torch.testing.assert_close(model.last.weight.grad, twin.last.weight.grad)


def test_groups_have_their_own_rho_and_may_stay_out() -> None:
    model = net(dropout=0)
    optimizer = torch.optim.SGD(
        [
            {"params": list(model.first.parameters()), "rho": 0.3},
            {"params": list(model.second.parameters())},
            {"params": [*model.last.parameters(), *model.rare.parameters()], "perturb": False},
        ],
        lr=0.1,
    )
    sharp = steppe.SAM(model, optimizer, rho=0.1)
    loss_of(model)(BATCH).backward()
    inside = [*model.first.parameters(), *model.second.parameters()]
    length = torch.sqrt(sum((p.grad**2).sum() for p in inside))  # type: ignore[misc]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with sharp.perturbed():
        for n, p in model.named_parameters():
            rho = 0.3 if n.startswith("first") else 0.1 if n.startswith("second") else 0.0
            expected = before[n] + (rho * p.grad / length if p.grad is not None else 0)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)
    assert same(before, {n: p.detach() for n, p in model.named_parameters()})


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    model = net(dropout=0).eval()  # batch norm would see other batches
    _, sharp = make(model, ascent=steppe.Ascent(rho=0.2))
    x, y = BATCH
    pieces = [(x[i : i + 2], y[i : i + 2]) for i in range(0, 8, 2)]
    loss = sharp.backward(lambda b: loss_of(model)(b) / 4, micro_batches=pieces)
    accumulated = grads(model)
    model.zero_grad()
    whole = sharp.backward(loss_of(model), BATCH)
    close(accumulated, grads(model))
    torch.testing.assert_close(loss, whole)


def test_calling_backward_per_micro_batch_is_m_sharpness() -> None:
    model = net(dropout=0).eval()
    _, sharp = make(model, ascent=steppe.Ascent(rho=0.2))
    x, y = BATCH
    pieces = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4)]
    for piece in pieces:
        sharp.backward(lambda b: loss_of(model)(b) / 2, piece)
    separate = [by_hand(model, piece, 0.2) for piece in pieces]
    model_grads = grads(model)
    for name, grad in model_grads.items():
        if grad is not None:
            torch.testing.assert_close(grad, (separate[0][name] + separate[1][name]) / 2)  # type: ignore[operator]


def test_one_decision_for_all_micro_batches_of_a_step() -> None:
    model = net()
    optimizer, sharp = make(model, schedule=steppe.Every(2))
    decisions = []
    for _ in range(4):
        for _ in range(3):
            sharp.backward(lambda: loss_of(model)(BATCH))
            decisions.append(sharp.last.ascended)
        optimizer.step()
        optimizer.zero_grad()
    assert decisions == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3 and sharp.step == 4


def test_the_ascent_on_a_few_samples() -> None:
    model = net(dropout=0).eval()
    _, sharp = make(model, ascent=steppe.Ascent(rho=0.2), look=steppe.Look(3))
    seen: list[int] = []
    model.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    few = (BATCH[0][:3], BATCH[1][:3])
    clean_few = loss_of(model)(few)
    gradients = torch.autograd.grad(clean_few, [p for p in model.parameters() if p.requires_grad])
    length = torch.sqrt(sum((g**2).sum() for g in gradients))  # type: ignore[misc]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip((p for p in twin.parameters() if p.requires_grad), gradients, strict=True):
            p += 0.2 * g / length
    loss_of(twin)(BATCH).backward()
    seen.clear()
    loss = sharp.backward(loss_of(model), BATCH)
    assert seen == [3, 8] and loss.item() == clean_few.item()
    close(grads(model), grads(twin))


def test_few_samples_with_a_combination_that_needs_the_clean_gradient() -> None:
    model = net()
    optimizer, sharp = make(model, look=steppe.Look(0.25), schedule=steppe.Every(2), combine=steppe.Reuse())
    seen: list[int] = []
    model.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    for batch in batches(3):
        sharp.backward(loss_of(model), batch)
        optimizer.step()
        optimizer.zero_grad()
    assert seen == [2, 8, 8, 8, 2, 8, 8]
    assert model.norm.num_batches_tracked == 3, "the look at a few samples moves no statistic"


def test_statistics_with_few_samples_come_from_the_whole_batch() -> None:
    model = net(dropout=0)
    _, sharp = make(model, look=steppe.Look(2))
    sharp.backward(loss_of(model), BATCH)
    assert model.norm.num_batches_tracked == 1
    few = BATCH[0][:2]
    slice_only = 0.1 * model.first(few).mean(0)
    assert not torch.allclose(model.norm.running_mean, slice_only, atol=1e-2)


def test_the_hosts_backward_and_a_loss_scale() -> None:
    model, scaled = net(dropout=0), net(dropout=0)
    _, sharp = make(model)
    _, other = make(scaled)
    sharp.backward(lambda: loss_of(model)(BATCH))
    other.backward(lambda: loss_of(scaled)(BATCH), backward=lambda loss: (loss * 1024).backward())
    close(grads(scaled), {n: None if g is None else 1024 * g for n, g in grads(model).items()})


def test_the_phases_equal_backward() -> None:
    model, twin = net(), net()
    optimizer, sharp = make(model, schedule=steppe.Every(2), combine=steppe.Reuse(0.3))
    twin_optimizer, phases = make(twin, schedule=steppe.Every(2), combine=steppe.Reuse(0.3))
    for i, batch in enumerate(batches(5)):
        torch.manual_seed(i)
        sharp.backward(loss_of(model), batch)
        torch.manual_seed(i)
        phases.mark()
        loss_of(twin)(batch).backward()
        if phases.ascend():
            loss_of(twin)(batch).backward()
            phases.restore()
        for o in (optimizer, twin_optimizer):
            o.step()
            o.zero_grad()
        assert same(everything(model), everything(twin))


def test_clipping_cannot_turn_wsam_into_ascent() -> None:
    results = []
    for clip in (False, True):
        model = net(dropout=0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0 if not clip else 1000.0)
        sharp = steppe.WSAM(model, optimizer, gamma=0.9, rho=0.5)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        sharp.backward(lambda m=model: loss_of(m)(BATCH))
        if clip:
            for p in model.parameters():
                if p.grad is not None:
                    p.grad /= 1000  # a common factor, as clipping and unscaling apply it
        optimizer.step()
        results.append({n: p.detach() - start[n] for n, p in model.named_parameters()})
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-9, atol=1e-12)


def test_everything_composes_in_one_constructor() -> None:
    model = net()
    optimizer, sharp = make(
        model,
        ascent=steppe.Ascent(rho=0.01, metric=steppe.Adaptive(), scope="trust", direction=steppe.Friendly(0.5)),
        schedule=steppe.Every(2) & steppe.Bernoulli(0.7),
        combine=steppe.Reuse(0.2, refresh=steppe.Mix(0.8)),
        seed=4,
    )
    losses = []
    for batch in batches(20):
        losses.append(sharp.backward(loss_of(model), batch).item())
        optimizer.step()
        optimizer.zero_grad()
    expected = [t % 2 == 0 and steppe.schedule.uniform(4, t) < 0.7 for t in range(20)]
    assert sharp.step == 20 and any(expected) and all(map(torch.isfinite, map(torch.tensor, losses)))
