"""SharpnessAware between ascend and restore: what must be as it was, and what is refused meanwhile."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import random
import re
import weakref

import pytest
import torch
from tests.problems import BATCH, close, everything, grads, loss_of, make, net, same, weights
from torch import Tensor, nn

import steppe


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


@pytest.mark.filterwarnings("ignore::FutureWarning")  # looking at every live object wakes deprecated ones
def test_memory_buffers_while_perturbed() -> None:
    """SAM holds one copy of the weights in the second pass, mixing methods two, and nothing stays."""

    def live() -> int:
        gc.collect()
        held = (each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter))
        large = [t for t in held if t.numel() == 300 * 300]
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


def test_an_abandoned_step_with_zeroed_gradients_leaves_no_correction() -> None:
    """GradScaler's overflow, then zero_grad(set_to_none=False): the inf of the abandoned step must not come back."""
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


def test_an_autocast_around_the_whole_step_sees_the_moved_weights() -> None:
    """Autocast keeps its casts until its outermost context ends; inside and around must be the same."""
    losses = []
    for around in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
        x, y = BATCH[0].float(), BATCH[1]

        def loss(model: nn.Module = model, x: Tensor = x, y: Tensor = y, inside: bool = not around) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=inside or torch.is_autocast_enabled("cpu")):
                return nn.functional.cross_entropy(model(x), y)

        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            sharp.backward(loss)
            clean = loss()
        losses.append((sharp.last.loss.item(), sharp.last.perturbed_loss.item(), clean.item()))
    assert losses[0] == losses[1] and losses[1][0] == losses[1][2] < losses[1][1]


class Counted(nn.Module):
    """Counts its forward passes in a whole number, which no rule for running statistics covers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x


def test_perturbed_leaves_nothing_for_the_step_that_follows() -> None:
    """What the direction remembers is of the step's own gradient, not of the look's."""
    kept = []
    for looks in (False, True):
        model = net(dropout=0)
        optimizer, sharp = make(model, ascent=steppe.Ascent(direction=steppe.Friendly(sigma=0.5)))
        torch.manual_seed(3)
        sharp.backward(loss_of(model), BATCH)
        if looks:
            with sharp.perturbed():
                loss_of(model)(BATCH)
        optimizer.step()
        kept.append(sharp.memory["ascent"]["average"])
    assert same(*kept) and any(v.any() for v in kept[0].values())


@pytest.mark.parametrize("raises", [False, True])
def test_perturbed_brings_every_buffer_back(raises: bool) -> None:
    model = nn.Sequential(nn.Linear(5, 7), Counted(), nn.BatchNorm1d(7), nn.Linear(7, 3)).double()
    _, sharp = make(model)
    loss_of(model)(BATCH).backward()
    before, generator = everything(model), torch.get_rng_state()
    with contextlib.suppress(ZeroDivisionError), sharp.perturbed():
        loss_of(model)(BATCH)
        torch.rand(3)
        assert raises == 0 or 1 / 0
    assert same(before, everything(model)) and torch.equal(generator, torch.get_rng_state())


LOOKS: dict[str, dict[str, object]] = {
    "samples": {"samples": 2}, "view": {"view": lambda batch: batch}, "autocast": {"autocast": torch.bfloat16},
}  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_that_raises_leaves_statistics_and_generators(look: str) -> None:
    """Nobody learns of a cheaper pass by what it leaves, also when it ends in the middle."""
    model = nn.Sequential(nn.Linear(5, 7), Counted(), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, 3)).double()
    _, sharp = make(model, look=steppe.Look(**LOOKS[look]))  # type: ignore[arg-type]
    before, generator, python = everything(model), torch.get_rng_state(), random.getstate()

    def failing(batch: tuple[Tensor, Tensor]) -> Tensor:
        loss_of(model)(batch)
        random.random()
        raise MemoryError

    with pytest.raises(MemoryError):
        sharp.backward(failing, BATCH)
    assert same(before, everything(model))
    assert torch.equal(generator, torch.get_rng_state()) and random.getstate() == python
