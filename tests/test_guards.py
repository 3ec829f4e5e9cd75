"""What must be as it was after a second pass: weights and generators; and who is kept out meanwhile."""

import gc
import math
import random

import pytest
import torch
from torch import nn

import steppe
from steppe._backup import BACKUPS, Rows, SavedWeights
from steppe._doors import Doors
from steppe._guards import Replay
from steppe._optimizers import Optimizers
from steppe._randomness import Randomness
from steppe._state import State, Watch

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
DTYPES = list(BITS)
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def bits(tensor):
    return tensor.detach().clone().view(BITS[tensor.dtype])


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ruin", [math.nan, math.inf, 0.0, 3e4, None], ids=str)
@pytest.mark.parametrize("backup", [*BACKUPS, "rows"])
def test_weights_come_back_bit_for_bit_into_the_same_storage(dtype, ruin, backup):
    values = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-45, 6e-8, 1.0, -3.3, 6e4]
    weights = [torch.tensor(values, dtype=torch.float64).to(dtype), torch.randn(4, 5).to(dtype).t(), torch.zeros(0)]
    weights = [nn.Parameter(w) for w in weights]
    before = [bits(w.contiguous()) for w in weights[:2]]
    storages = [w.untyped_storage().data_ptr() for w in weights]
    saved = SavedWeights(weights, backup) if backup in BACKUPS else SavedWeights(weights, rows=Rows(weights))
    with torch.no_grad():
        for w in weights:
            w.add_(0.1) if ruin is None else w.fill_(ruin)
    saved.back()
    assert all(torch.equal(bits(w.contiguous()), b) for w, b in zip(weights, before, strict=False))
    assert [w.untyped_storage().data_ptr() for w in weights] == storages
    assert all(w.requires_grad and w.is_leaf for w in weights)


def test_weights_can_come_back_twice():
    w = nn.Parameter(torch.ones(2))
    saved = SavedWeights(iter([w]))
    for _ in range(2):
        w.data.fill_(5.0)
        saved.back()
        assert w.tolist() == [1.0, 1.0]


def test_no_weights_at_all():
    SavedWeights([]).back()


@pytest.mark.parametrize("backup", BACKUPS)
def test_a_copy_has_storage_of_its_own_and_no_graph(backup):
    w = nn.Parameter(torch.ones(2))
    (copy,) = SavedWeights([w], backup).copies
    assert copy.data_ptr() != w.data_ptr() and not copy.requires_grad and copy.grad_fn is None


@pytest.mark.gpu
def test_on_the_host_the_copy_is_pinned_and_nobody_waits_for_it():
    weights = [torch.randn(1000, 1000, device="cuda") for _ in range(4)]
    before = [w.clone() for w in weights]
    torch.cuda.set_sync_debug_mode("error")
    try:
        saved = SavedWeights(weights, "host")
        for w in weights:
            w.mul_(2.0)
        saved.back()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(c.is_pinned() for c in saved.copies)
    del saved  # what is queued still reads it
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


# --- generators ---------------------------------------------------------------------------------------------


def draws():
    return torch.rand(3).tolist() + [random.random()]


def test_the_second_pass_repeats_the_draws_and_the_loop_continues_after_the_first():
    torch.manual_seed(0), random.seed(0)
    first, then = draws(), draws()
    torch.manual_seed(0), random.seed(0)
    replay = Replay(Watch(list, list), lambda: Randomness(()))
    assert draws() == first
    replay.again()
    assert draws() == first
    draws(), draws()  # a second pass that draws more than the first
    replay.done()
    assert draws() == then


def test_without_masks_the_generators_go_on():
    torch.manual_seed(0), random.seed(0)
    expected = [draws() for _ in range(3)]
    torch.manual_seed(0), random.seed(0)
    replay = Replay(Watch(list, list), lambda: Randomness((), shared=False))
    got = [draws()]
    replay.again()
    got.append(draws())
    replay.done()
    assert [*got, draws()] == expected


@pytest.mark.parametrize("same", [True, False])
def test_masks_of_whole_steps(same):
    """Stochastic depth drawn from Python's generator and dropout from torch's."""
    torch.manual_seed(0), random.seed(0)
    w, seen = nn.Parameter(torch.ones(3)), []
    model = nn.Module()
    model.w = w

    def loss():
        seen.append(draws())
        return (w * torch.tensor(seen[-1][:3])).sum()

    sharp = steppe.SAM(model, torch.optim.SGD([w], lr=0.1), same_dropout=same)
    for _ in range(3):
        sharp.backward(loss)
    torch.manual_seed(0), random.seed(0)
    plain = [draws() for _ in range(6)]
    assert seen == ([d for d in plain[:3] for _ in range(2)] if same else plain)


def test_generators_continue_when_the_second_pass_raises():
    torch.manual_seed(0), random.seed(0)
    draws()
    then = draws()
    torch.manual_seed(0), random.seed(0)
    model = nn.Linear(3, 1)
    torch.manual_seed(0), random.seed(0)
    calls = []

    def loss():
        draws()
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("second")
        return model(X).sum()

    with pytest.raises(ValueError, match="second"):
        steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1)).backward(loss)
    assert draws() == then


# --- doors --------------------------------------------------------------------------------------------------


def doors_and_keys():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model_state, optimizer_state = model.state_dict(), optimizer.state_dict()
    ways = {
        "save the model": model.state_dict,
        "load the model": lambda: model.load_state_dict(model_state),
        "save the optimizer": optimizer.state_dict,
        "load the optimizer": lambda: optimizer.load_state_dict(optimizer_state),
    }
    return model, optimizer, ways


def test_doors_are_shut_and_open_again():
    model, optimizer, ways = doors_and_keys()
    doors = Doors(model, Optimizers(optimizer))
    doors.shut(list(model.parameters()))
    for what, way in ways.items():
        with pytest.raises(RuntimeError, match=f"cannot {what} while the weights are perturbed: call restore"):
            way()
    doors.open()
    for way in ways.values():
        way()


def test_doors_leave_nothing_behind():
    model, optimizer, _ = doors_and_keys()
    sharp = steppe.SAM(model, optimizer)
    hooks = (model._state_dict_pre_hooks, model._load_state_dict_pre_hooks)
    hooks += (optimizer._optimizer_state_dict_pre_hooks, optimizer._optimizer_load_state_dict_pre_hooks)
    before = [len(h) for h in hooks]
    for _ in range(3):
        sharp.backward(lambda: model(X[:, :2]).sum())
    assert [len(h) for h in hooks] == [n + 1 for n in before], "hung once"
    del sharp
    gc.collect()
    assert [len(h) for h in hooks] == before


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_compiled_model_is_refused_by_either_name(wrapped):
    model, optimizer, _ = doors_and_keys()
    compiled = torch.compile(model, backend="eager")
    sharp = steppe.SAM(compiled, optimizer)
    model(X[:, :2]).sum().backward()
    with sharp.perturbed(), pytest.raises(RuntimeError, match="cannot save the model"):
        (compiled if wrapped else model).state_dict()
    (compiled if wrapped else model).state_dict()


def test_a_state_that_cannot_be_put_back_leaves_no_door_shut_and_no_weight_moved(monkeypatch):
    model = nn.Linear(3, 1)
    before = bits(model.weight)

    def fail(self):
        raise RuntimeError("cannot be put back")

    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    monkeypatch.setattr(State, "back", fail)
    with pytest.raises(RuntimeError, match="cannot be put back"):
        sharp.backward(lambda: model(X).square().sum())
    assert torch.equal(bits(model.weight), before)
    model.state_dict()
