"""SharpnessAware in the loop: what backward leaves in .grad, and what it leaves alone."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref

import pytest
import torch
from tests.problems import BASES, batches, everything, loss_of, net, same
from torch import Tensor, nn

import steppe


def make(model: nn.Module, **parts: object) -> tuple[torch.optim.Optimizer, steppe.SharpnessAware]:
    optimizer = BASES["sgd"](model)
    return optimizer, steppe.SharpnessAware(model, optimizer, **parts)  # type: ignore[arg-type]


def grads(model: nn.Module) -> dict[str, Tensor | None]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if "running" not in k and "tracked" not in k}


def close(a: dict[str, Tensor | None], b: dict[str, Tensor | None], **tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] is None) == (b[name] is None), name
        if a[name] is not None:
            torch.testing.assert_close(a[name], b[name], **({"rtol": 1e-12, "atol": 1e-14} | tolerance))


def by_hand(model: nn.Module, batch: tuple[Tensor, Tensor], rho: float = 0.05) -> dict[str, Tensor | None]:
    """SAM's gradient the slow way, on a copy."""
    twin = copy.deepcopy(model)
    loss_of(twin)(batch).backward()
    moved = [p for p in twin.parameters() if p.grad is not None]
    length = torch.sqrt(sum((p.grad**2).sum() for p in moved))  # type: ignore[arg-type, misc]
    with torch.no_grad():
        for p in moved:
            p += rho * p.grad / length
            p.grad = None
    loss_of(twin)(batch).backward()
    return grads(twin)


BATCH = next(batches(1))


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


def test_weights_and_statistics_after_backward() -> None:
    model, plain = net(), net()
    _, sharp = make(model)
    storage = {n: p.data_ptr() for n, p in model.named_parameters()}
    torch.manual_seed(3)
    sharp.backward(lambda: loss_of(model)(BATCH))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    loss_of(plain)(BATCH).backward()
    assert same(everything(model), everything(plain)), "weights back, statistics moved once"
    assert {n: p.data_ptr() for n, p in model.named_parameters()} == storage
    assert torch.equal(after, torch.get_rng_state()), "random numbers are consumed as by one pass"


def test_dropout_masks_are_the_same_in_both_passes_and_can_be_fresh() -> None:
    seen: list[Tensor] = []
    drop = nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(5, 64), drop, nn.Linear(64, 3)).double()
    drop.register_forward_hook(lambda m, i, o: seen.append(o == 0))
    for same_dropout in (True, False):
        seen.clear()
        _, sharp = make(model, same_dropout=same_dropout)
        sharp.backward(lambda: loss_of(model)(BATCH))
        assert torch.equal(seen[0], seen[1]) is same_dropout


def test_a_custom_running_statistic_moves_once() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)  # rebound, not written in place
            return x

    model = nn.Sequential(Counter(), nn.Linear(5, 3).double())
    _, sharp = make(model)
    sharp.backward(lambda: loss_of(model)(BATCH))
    assert model[0].count == 1
    torch.testing.assert_close(model[0].mean, 0.1 * BATCH[0].mean(0))


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_error_in_either_pass_leaves_weights_gradients_and_statistics(failing: int, error: BaseException) -> None:
    model = net()
    _, sharp = make(model, combine=steppe.Mix(0.5))
    loss_of(model)(BATCH).backward()
    before, held, calls = everything(model), grads(model), 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error
        return loss_of(model)(BATCH)

    with pytest.raises(type(error)):
        sharp.backward(closure)
    after = everything(model)
    assert same(weights(after), weights(before))
    close(grads(model), held, rtol=0, atol=0)
    assert after["norm.num_batches_tracked"] == before["norm.num_batches_tracked"] + (failing == 2)
    model.state_dict()  # the doors are open again
    sharp.backward(lambda: loss_of(model)(BATCH))


@pytest.mark.parametrize("poison", [float("inf"), float("nan")])
def test_inf_and_nan_gradients_leave_exact_weights(poison: float) -> None:
    model = net()
    _, sharp = make(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    sharp.backward(lambda: loss_of(model)(BATCH) * poison)
    assert same(before, {n: p.detach() for n, p in model.named_parameters()})


def test_a_zero_gradient_gives_no_nan() -> None:
    model = net()
    _, sharp = make(model, combine=steppe.Reuse(), ascent=steppe.Ascent(metric=steppe.Adaptive(), scope="trust"))
    sharp.backward(lambda: loss_of(model)(BATCH) * 0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


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
    moved = {}

    def closure() -> Tensor:
        moved.update({n: p.detach().clone() for n, p in model.named_parameters()})
        return loss_of(model)(BATCH)

    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    sharp.backward(closure)
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
    _, sharp = make(model, ascent=steppe.Ascent(rho=0.2, samples=3))
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
    optimizer, sharp = make(model, ascent=steppe.Ascent(samples=0.25), schedule=steppe.Every(2), combine=steppe.Reuse())
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
    _, sharp = make(model, ascent=steppe.Ascent(samples=2))
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


def test_ascend_without_mark_says_that_masks_are_fresh() -> None:
    model = net()
    _, sharp = make(model)
    loss_of(model)(BATCH).backward()
    with pytest.warns(UserWarning, match="mark"):
        sharp.ascend()
    sharp.restore()


REFUSED = {
    "save the model": lambda m, o, s: m.state_dict(),
    "save the optimizer": lambda m, o, s: o.state_dict(),
    "save the state": lambda m, o, s: s.state_dict(),
    "load the model": lambda m, o, s: m.load_state_dict({}),
    "load the optimizer": lambda m, o, s: o.load_state_dict({}),
    "load a state": lambda m, o, s: s.load_state_dict({}),
    "step the optimizer": lambda m, o, s: o.step(),
    "ascend again": lambda m, o, s: s.ascend(),
    "start another backward": lambda m, o, s: s.backward(lambda: loss_of(m)(BATCH)),
    "enter perturbed()": lambda m, o, s: s.perturbed().__enter__(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_nothing_is_saved_loaded_or_stepped_while_perturbed(what: str) -> None:
    model = net(dropout=0)
    optimizer, sharp = make(model)
    loss_of(model)(BATCH).backward()
    assert sharp.ascend()
    with pytest.raises(RuntimeError, match=f"cannot {re.escape(what)} while the weights are perturbed: call restore"):
        REFUSED[what](model, optimizer, sharp)
    loss_of(model)(BATCH).backward()
    sharp.restore()
    for free in ("save the model", "save the optimizer", "save the state", "step the optimizer"):
        REFUSED[free](model, optimizer, sharp)


def test_perturbed_shows_the_loss_at_the_top_and_changes_nothing() -> None:
    model = net()
    _, sharp = make(model, ascent=steppe.Ascent(rho=0.5, direction=steppe.Friendly()))
    sharp.backward(lambda: loss_of(model)(BATCH))
    before, held, memory, state = everything(model), grads(model), sharp.memory, torch.get_rng_state()
    with sharp.perturbed(), torch.no_grad():
        inside = loss_of(model)(BATCH)
    assert inside > 0 and same(before, everything(model)) and sharp.memory == memory
    close(grads(model), held, rtol=0, atol=0)
    assert torch.equal(state, torch.get_rng_state())
    model.zero_grad()
    with pytest.raises(RuntimeError, match="no gradient to climb"), sharp.perturbed():
        pass


def test_perturbed_restores_when_the_block_raises() -> None:
    model = net()
    _, sharp = make(model)
    loss_of(model)(BATCH).backward()
    before = everything(model)
    with pytest.raises(ZeroDivisionError), sharp.perturbed():
        1 / 0  # noqa: B018
    assert same(before, everything(model))


def test_restore_without_ascend_is_refused() -> None:
    _, sharp = make(net())
    with pytest.raises(RuntimeError, match="nothing is perturbed"):
        sharp.restore()


def test_a_step_that_never_happens_leaves_schedule_and_memory() -> None:
    model = net()
    friendly = steppe.Ascent(direction=steppe.Friendly())
    optimizer, sharp = make(model, schedule=steppe.Every(2), combine=steppe.Reuse(), ascent=friendly)
    sharp.backward(lambda: loss_of(model)(BATCH) * float("inf"))
    optimizer.zero_grad()  # as GradScaler does after an overflow: no step
    assert sharp.step == 0 and sharp.memory == {}
    sharp.backward(lambda: loss_of(model)(BATCH))
    assert sharp.last.ascended
    optimizer.step()
    assert sharp.step == 1 and all(g.isfinite().all() for g in sharp.memory["combine"]["g_v"].values())


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


@pytest.mark.filterwarnings("ignore::FutureWarning")  # looking at every live object wakes deprecated ones
def test_memory_buffers_while_perturbed() -> None:
    """SAM holds one copy of the weights in the second pass, mixing methods two, and nothing stays."""

    def live() -> int:
        gc.collect()
        large = [t for t in gc.get_objects() if isinstance(t, Tensor) and t.numel() == 300 * 300]
        return len({t.untyped_storage().data_ptr() for t in large})

    def held(combine: steppe.Combine) -> int:
        model, counts = nn.Linear(300, 300, bias=False), []
        sharp = steppe.SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.1), combine=combine)

        def closure() -> Tensor:
            counts.append(live())
            return model(torch.ones(1, 300)).square().sum()

        start = live()
        sharp.backward(closure)
        model.zero_grad()
        assert live() == start, "nothing stays"
        return counts[1] - start

    assert held(steppe.Replace()) == 1
    assert held(steppe.Mix(0.5)) == 2


def test_the_object_lives_and_dies_with_its_user() -> None:
    model = net()
    optimizer, sharp = make(model)
    copy.deepcopy(model), copy.deepcopy(optimizer)
    pickle.loads(pickle.dumps(model))
    reference = weakref.ref(sharp)
    del sharp
    gc.collect()
    assert reference() is None
    loss_of(model)(BATCH).backward()
    optimizer.step()


def test_sparse_gradients_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2))
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="sparse"):
        sharp.backward(lambda: model(torch.tensor([1, 2])).sum())


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


def test_an_abandoned_step_with_zeroed_gradients_leaves_no_correction() -> None:
    """GradScaler's overflow followed by zero_grad(set_to_none=False): the inf of the abandoned step must not come back."""
    model, twin = net(dropout=0), net(dropout=0)
    optimizer, sharp = make(model, combine=steppe.Decoupled(0.9))
    twin_optimizer, other = make(twin, combine=steppe.Decoupled(0.9))
    sharp.backward(lambda: loss_of(model)(BATCH) * float("inf"))
    optimizer.zero_grad(set_to_none=False)
    model.norm.load_state_dict(twin.norm.state_dict())
    for m, o, s in ((model, optimizer, sharp), (twin, twin_optimizer, other)):
        s.backward(lambda m=m: loss_of(m)(BATCH))
        o.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p, twin.get_parameter(n), rtol=1e-12, atol=1e-14)
