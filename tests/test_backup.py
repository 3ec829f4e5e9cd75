"""Where the saved weights lie changes nothing of what is computed, and lasts no longer than the window."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tests.problems import batches, loss_of, net
from torch import nn

import steppe
from steppe._backup import BACKUPS, LENGTH, MANY, SMALL, Rows, SavedWeights

METHODS = ("sam", "look_sam", "gsam", "fsam", "asam")


def trained(name: str, backup: str) -> torch.Tensor:
    model = net(torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sharp = steppe.methods.get(name).recipe(model, optimizer, backup=backup)
    for batch in batches(7, torch.float64):
        sharp.backward(loss_of(model), batch)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", METHODS)
def test_the_same_weights_bit_for_bit_wherever_the_copy_lies(name: str) -> None:
    assert torch.equal(trained(name, "device"), trained(name, "host"))


@pytest.mark.parametrize("backup", BACKUPS)
def test_displacement_is_measured_from_the_copy(backup: str) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = steppe.SharpnessAware(model, optimizer, ascent=steppe.Ascent(rho=0.25), backup=backup, measure=True)
    sharp.backward(lambda: model(torch.ones(2, 4)).square().sum())
    assert float(sharp.last.displacement) == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("backup", BACKUPS)
def test_the_copy_is_freed_with_the_perturbation(backup: str) -> None:
    model = nn.Linear(4, 3)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), backup=backup)
    model(torch.ones(2, 4)).sum().backward()
    sharp.ascend()
    assert sharp._making.climb.perturbation is not None
    copies = [weakref.ref(c) for c in sharp._making.climb.perturbation.copies]
    sharp.restore()
    gc.collect()
    assert len(copies) == 2 and all(c() is None for c in copies)


def test_copies_of_rows_are_in_the_order_of_the_weights() -> None:
    large = torch.randn(SMALL)
    weights = [torch.randn(3), large, torch.ones(2, 2).double(), torch.randn(4, 3).t(), torch.tensor(7.0)]
    saved = SavedWeights(weights, rows=Rows(weights))
    assert all(torch.equal(c, w) and c.dtype == w.dtype for c, w in zip(saved.copies, weights, strict=True))


def various() -> list[torch.Tensor]:
    """Small and large, of two types, scattered, empty, and more small ones than a row is long."""
    large = torch.randn(SMALL)
    few = [torch.randn(3), large, torch.ones(2, 2).double(), torch.randn(4, 3).t(), torch.tensor(7.0), torch.empty(0)]
    return few + [torch.randn(SMALL // 4) for _ in range(2 * LENGTH // (SMALL // 4))] + [torch.ones(5).double()]


def test_what_is_joined_is_in_rows_of_some_length_and_comes_apart_again() -> None:
    weights = various()
    rows, values = Rows(weights), [torch.randn_like(w) for w in weights]
    joined = rows.joined(values)
    assert len(joined) < len(weights) and all(row.numel() <= LENGTH for row in joined[: len(rows.rows)])
    assert len({id(v) for v in joined} & {id(v) for v in values}) == len(rows.rest)
    assert not {id(v) for v in rows.joined(values, fresh=True)} & {id(v) for v in values}
    assert all(torch.equal(a, b) and a.shape == b.shape for a, b in zip(rows.in_order(joined), values, strict=True))


@pytest.mark.parametrize("saved", [True, False])
def test_what_is_joined_is_added_bit_for_bit_as_its_pieces(saved: bool) -> None:
    weights = various()
    eps = [torch.randn_like(w) for w in weights]
    expected = [w + e for w, e in zip(weights, eps, strict=True)]
    rows = Rows(weights)
    copies = SavedWeights(weights, rows=rows)
    rows.add_(rows.joined(eps), copies.of_rows if saved else ())
    assert all(torch.equal(w, x) for w, x in zip(weights, expected, strict=True))


def test_to_memory_that_two_weights_share_what_is_made_of_both_is_added() -> None:
    memory = torch.arange(20.0)
    weights = [nn.Parameter(memory[i:j]) for i, j in ((0, 8), (4, 12), (12, 16), (16, 20))]
    rows = Rows(weights)
    with torch.no_grad():
        rows.add_(rows.joined([torch.ones_like(w) for w in weights]))
    both = torch.tensor([1.0] * 4 + [2.0] * 4 + [1.0] * 12)
    assert torch.equal(memory, torch.arange(20.0) + both) and len(rows.rest) == 2


@pytest.mark.parametrize("scope", ["global", "none"])
@pytest.mark.parametrize("method", [steppe.SharpnessAware, partial(steppe.SharpnessAware, combine=steppe.Mix(0.5))])
def test_a_perturbation_of_rows_is_that_of_the_tensors(method: Callable[..., Any], scope: str) -> None:
    """Which a direction of the user's is handed one by one."""

    class ByName(steppe.Gradient):
        def __call__(self, grads: Any, memory: Any, scale: Any = 1.0) -> Any:
            assert grads.keys() <= dict(model.named_parameters()).keys()
            return grads, {}

    found = []
    for direction in (steppe.Gradient(), ByName()):
        model, ascent = net(torch.float64), steppe.Ascent(0.1, direction, scope=scope)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        sharp = method(model, optimizer, ascent=ascent, measure=True)
        sharp.backward(loss_of(model), next(iter(batches(1, torch.float64))))
        assert scope == "none" or float(sharp.last.displacement) == pytest.approx(0.1, rel=1e-4)
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_rows_are_made_anew_where_a_weight_lies_elsewhere() -> None:
    """Another storage, another shape or another layout at the same address: the weights come back all the same."""
    memory = torch.arange(64.0)
    weight = nn.Parameter(memory[:8])
    rows = Rows([weight])
    assert rows.fit([weight]) and not rows.fit([nn.Parameter(memory[:8])]) and not rows.fit([weight, weight])
    for other in (memory[:8].clone(), memory[:6], memory[:16:2]):
        weight.data = other
        assert not rows.fit([weight])
        weight.data = memory[:8]
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(MANY)))
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    for scale in (1.0, 2.0, 3.0):
        model[0].weight.data = before = torch.randn(4, 4) * scale
        kept = [p.detach().clone() for p in model.parameters()]
        sharp.backward(lambda: model(torch.ones(2, 4)).square().sum())
        assert sharp.last.ascended and model[0].weight.data_ptr() == before.data_ptr()
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), kept, strict=True))
        model.zero_grad()


@pytest.mark.parametrize("bad", ["cpu", "", None, 1])
def test_an_unknown_place_is_refused(bad: object) -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="backup=.*expected one of 'device', 'host'"):
        steppe.SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.1), backup=bad)  # type: ignore[arg-type]


def test_a_checkpoint_says_nothing_of_the_place() -> None:
    """It is a matter of the machine: a run may go on elsewhere with the other."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = steppe.SAM(model, optimizer, backup="host").state_dict()
    other = steppe.SAM(model, optimizer, backup="device")
    other.load_state_dict(state)
    assert other.backup == "device" and "backup" not in state


@pytest.mark.gpu
def test_on_the_host_the_device_holds_one_buffer_less() -> None:
    weight = torch.zeros(1 << 20, device="cuda")
    held = {}
    for backup in BACKUPS:
        before = torch.cuda.memory_allocated()
        saved = SavedWeights([weight], backup)
        held[backup] = torch.cuda.memory_allocated() - before
        del saved
    assert held == {"device": 4 << 20, "host": 0}


@pytest.mark.parametrize("layers", [2, MANY])
def test_weights_that_a_forward_binds_to_other_memory_are_back_too(layers: int) -> None:
    """Masks and clamps written as ``p.data = ...``: the weights' old memory is not what the optimizer will step."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = [p.detach().clone() for p in model.parameters()]

    def loss() -> torch.Tensor:
        for p in model.parameters():
            p.data = p.data.clamp(-5, 5)
        return model(torch.ones(2, 4)).square().sum()

    for _ in range(2):
        sharp.backward(loss)
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
