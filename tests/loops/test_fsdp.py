"""FSDP2 (``fully_shard``): norms over all shards, weights back in their shards, and no stale gathered copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.loops import distributed as d
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

import steppe

ALL = d.LOOP_METHODS + d.MORE_METHODS


# Equal to one process, and to DDP, on the whole batch


def _sharded(names: tuple[str, ...], exact: tuple[str, ...]) -> dict[str, Any]:
    return {
        "fp32": d.trajectories("FSDP2", names),
        "fp64": {name: d.trajectory("FSDP2", name, dtype=torch.float64) for name in exact},
    }


@pytest.fixture(scope="module")
def sharded() -> dict[int, list[dict[str, Any]]]:
    return {2: d.run(2, _sharded, ALL, d.LOOP_METHODS), 4: d.run(4, _sharded, ("asam", "look_sam"), ())}


@pytest.mark.parametrize("name", ALL)
def test_equals_one_process(name: str, sharded: dict[int, Any], record_property: d.Record) -> None:
    d.record(record_property, "FSDP2", name)
    for world, ranks in sharded.items():
        if name in ranks[0]["fp32"]:
            d.assert_equal(name, [rank["fp32"][name] for rank in ranks], d.trajectory("single", name), 1e-6, world)


@pytest.mark.parametrize("name", d.LOOP_METHODS)
def test_equals_one_process_to_the_rounding_of_float64(name: str, sharded: dict[int, Any]) -> None:
    single = d.trajectory("single", name, dtype=torch.float64)
    d.assert_equal(name, [rank["fp64"][name] for rank in sharded[2]], single, 1e-13, 2)


# Ways to shard


def _policies() -> dict[str, dict[str, Any]]:
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policies: dict[str, dict[str, Any]] = {
        "plain": {},
        "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},  # pinning needs an accelerator
        "mixed": {"mp_policy": half},
        "kept": {"reshard_after_forward": False},
    }
    return {
        f"{name} {policy}": d.trajectory("FSDP2", name, options, measure=True)
        for policy, options in policies.items()
        for name in ("look_sam", "asam")
    }


def test_policies() -> None:
    """Offloaded, and kept gathered between forward and backward: the same; bf16 passes: the same to bf16's rounding."""
    for ran in d.run(2, _policies):
        for name in ("look_sam", "asam"):
            plain = ran[f"{name} plain"]["weights"]
            assert torch.equal(ran[f"{name} offloaded"]["weights"], plain)
            assert torch.equal(ran[f"{name} kept"]["weights"], plain)
            mixed = ran[f"{name} mixed"]["weights"]
            assert mixed.dtype == torch.float32 and 0 < (mixed - plain).norm() < 0.02 * plain.norm()


def _counts() -> dict[str, dict[str, int]]:
    counts = {}
    for name in ("sam", "rst"):
        model = d.wrap("FSDP2", d.network())
        optimizer = d.base(name, model)
        sharp = d.sharpen(name, model, optimizer)
        with d.counted() as seen:
            ascents = sum(d.advance(model, optimizer, sharp))
        counts[name] = {"ascents": ascents, "norms": seen["all_reduce"]}
    return counts


def test_collectives_are_counted() -> None:
    """Beside FSDP2's own: one small all-reduce for each perturbation, of the norm."""
    for ran in d.run(2, _counts):
        for count in ran.values():
            assert count["norms"] == count["ascents"] > 0


# The weights, and what FSDP2 keeps gathered of them

Case = tuple[nn.Module, steppe.SharpnessAware, Callable[[], Tensor]]


def _case(rho: float = 5.0) -> Case:
    model = d.wrap("FSDP2", d.network())
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), 0.1), rho=rho)
    batch = next(d.batches(1))
    return model, sharp, lambda: d.loss_of(model)(batch)


def _truth() -> dict[str, float]:
    _, sharp, closure = _case()
    loss = sharp.backward(closure)
    assert sharp.last.perturbed_loss is not None
    return {"bottom": float(loss), "top": float(sharp.last.perturbed_loss)}


def _look(closure: Callable[[], Tensor]) -> float:
    with torch.no_grad():
        return float(closure())


def _looks() -> dict[str, float]:
    """Looks without a backward, after which FSDP2 keeps the root's weights gathered."""
    _, sharp, closure = _case()
    closure().backward()
    with sharp.perturbed():
        seen = {"top": _look(closure)}
    seen["bottom"] = _look(closure)
    assert sharp.ascend()  # after the look at the bottom
    seen["top again"] = float(loss := closure())
    loss.backward()
    sharp.restore()
    seen["bottom again"] = _look(closure)
    return seen


def _kept_after_backward() -> dict[str, float]:
    model, sharp, closure = _case()
    model.set_reshard_after_backward(False)  # type: ignore[operator]
    seen = {"bottom": float(sharp.backward(closure))}
    seen["top"] = float(sharp.last.perturbed_loss)  # type: ignore[arg-type]
    seen["bottom again"] = _look(closure)
    return seen


def _held(sharp: steppe.SharpnessAware) -> list[Tensor]:
    """Copies of the shards that are stepped: before torch 2.13 an error leaves the model with gathered weights."""
    return [p.to_local().detach().clone() for group in sharp.optimizer.param_groups for p in group["params"]]


def _raised(where: str) -> dict[str, float]:
    """The second pass raises: in the middle of its forward, after it, or in the middle of its backward."""
    model, sharp, closure = _case()
    before = _held(sharp)
    calls = 0

    def failing() -> Tensor:
        nonlocal calls
        calls += 1
        loss = closure()
        if calls == 2 and where == "after":
            raise MemoryError
        return loss

    def hook(*_: Any) -> None:
        if sharp._making.climb.perturbation is not None:
            raise MemoryError

    register = {"forward": "register_forward_hook", "backward": "register_full_backward_hook"}.get(where)
    handle = getattr(model[2], register)(hook) if register else None  # type: ignore[index]
    with pytest.raises(MemoryError):
        sharp.backward(failing)
    if handle is not None:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(before, _held(sharp), strict=True))
    if where != "after" and not hasattr(model, "reset_iter_state"):
        return {}  # torch before 2.13 cannot go on after an error in the middle of a pass
    seen = {"bottom": _look(closure), "bottom again": float(sharp.backward(closure))}
    return seen | {"top": float(sharp.last.perturbed_loss)}  # type: ignore[arg-type]


def _every_look() -> dict[str, dict[str, float]]:
    cases: dict[str, Callable[[], dict[str, float]]] = {
        "truth": _truth,
        "looks": _looks,
        "kept": _kept_after_backward,
        **{where: lambda where=where: _raised(where) for where in ("forward", "after", "backward")},  # type: ignore[misc]
    }
    return {name: case() for name, case in cases.items()}


@pytest.fixture(scope="module")
def looks() -> list[dict[str, dict[str, float]]]:
    return d.run(2, _every_look)


@pytest.mark.parametrize("case", ["looks", "kept", "forward", "after", "backward"])
def test_every_pass_sees_the_present_weights(case: str, looks: list[dict[str, dict[str, float]]]) -> None:
    """Not what FSDP2 gathered before the shards moved."""
    for rank in looks:
        assert rank["truth"]["top"] > rank["truth"]["bottom"] + 1
        for where, loss in rank[case].items():
            assert loss == rank["truth"][where.split()[0]], where


# Few bits


def _half(rounding: str) -> tuple[float, float, bool]:
    """||eps||, the displacement, and whether 20 steps with learning rate 0 leave every shard as it was."""
    model = d.wrap("FSDP2", d.network(torch.bfloat16))
    before = d.pieces(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sharp = steppe.SAM(model, optimizer, rho=5.0, rounding=rounding, measure=True)
    d.advance(model, optimizer, sharp)
    same = all(torch.equal(a, b) for a, b in zip(before, d.pieces(model), strict=True))
    return float(sharp.last.perturbation_norm), float(sharp.last.displacement), same  # type: ignore[arg-type]


def _both_half() -> list[tuple[float, float, bool]]:
    return [_half("nearest"), _half("stochastic")]


def test_displacement_is_of_all_shards() -> None:
    for rank in d.run(2, _both_half):
        for wanted, moved, same in rank:
            assert same
            assert abs(wanted - 5) < 0.02 and abs(moved - 5) < 0.1


# States that cross, and what is refused


@dataclass(frozen=True)
class Rolled(steppe.ascent.Direction):
    """A direction of a user's own, which calls its memory as it likes."""

    def __call__(self, grads, memory, scale=1.0):
        old = memory.get("velocity", {})
        new = {k: 0.9 * old[k] + g if k in old else g.clone() for k, g in grads.items()}
        return {k: v.clone() for k, v in new.items()}, {"velocity": new, "drag": torch.tensor(0.9)}


def _sharpen(kind: str, model: nn.Module) -> steppe.SharpnessAware:
    if kind == "average":
        return d.sharpen("fsam", model, d.base("fsam", model))  # type: ignore[return-value]
    return steppe.SharpnessAware(model, torch.optim.SGD(model.parameters(), 0.1), ascent=steppe.Ascent(0.1, Rolled()))


def _crossing(kind: str) -> bool:
    """A plain process's state continues in shards, and back again: as if it had never left."""
    plain = d.network()
    alone = _sharpen(kind, plain)
    ones = {name: torch.ones_like(p) for name, p in plain.named_parameters() if p.requires_grad}
    alone.memory = {"ascent": {kind: ones}}
    model = d.wrap("FSDP2", d.network())
    sharp = _sharpen(kind, model)
    sharp.load_state_dict(alone.state_dict())
    sharp.backward(lambda: d.loss_of(model)(next(d.batches(1))))
    alone.load_state_dict(sharp.state_dict())
    return all(torch.equal(a, ones[n]) for n, a in alone.memory["ascent"][kind].items())


def _refused() -> list[str]:
    model = d.wrap("FSDP2", d.network())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    said = []
    for attempt in (lambda: steppe.SAM(model, optimizer, sync="rank"), lambda: _unsynced(model, optimizer)):
        try:
            attempt()
        except (ValueError, RuntimeError) as error:
            said.append(str(error))
    return said


def _unsynced(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.set_requires_gradient_sync(False)  # type: ignore[operator]
    steppe.SAM(model, optimizer).backward(lambda: d.loss_of(model)(next(d.batches(1))))


def _last_things() -> tuple[bool, list[str], int]:
    return _crossing("average") and _crossing("velocity"), _refused(), dist.get_world_size()


def test_states_cross_and_refusals_say_what_to_do() -> None:
    for crossed, (rank, unsynced), world in d.run(2, _last_things):
        assert crossed and world == 2
        assert "expected the DistributedDataParallel model itself" in rank
        assert "micro_batches" in unsynced
