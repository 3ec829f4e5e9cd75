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

ALL, F64 = d.LOOP_METHODS + d.MORE_METHODS, torch.float64


# Equal to one process, and to DDP, on the whole batch


# Few bits hide nothing that those of float64 show; of those, one way to make a step has a norm of its own.
FLOAT32 = ("sam", "asam", "look_sam")


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    """All that two ranks do, in one group."""
    works = {
        "fp64": (d.trajectories, "FSDP2", ALL, F64),
        "fp32": (d.trajectories, "FSDP2", FLOAT32),
        "policies": (_policies,),
        "counts": (_counts,),
        "looks": (_every_look,),
        "half": (_both_half,),
        "last": (_last_things,),
    }
    return d.run(2, d.every, works)


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return d.run(4, d.trajectories, "FSDP2", ("asam", "look_sam"), F64)


@pytest.mark.parametrize("name", ALL)
def test_equals_one_process(name: str, two: list[Any], record_property: d.Record) -> None:
    d.record(record_property, "FSDP2", name)
    d.assert_equal(name, [rank["fp64"][name] for rank in two], d.trajectory("single", name, dtype=F64), 1e-13, 2)


@pytest.mark.parametrize("name", FLOAT32)
def test_equals_one_process_in_float32(name: str, two: list[Any]) -> None:
    d.assert_equal(name, [rank["fp32"][name] for rank in two], d.trajectory("single", name), 1e-6, 2)


@pytest.mark.parametrize("name", ["asam", "look_sam"])
def test_four_ranks_of_which_one_holds_nothing_of_a_layer(name: str, four: list[Any]) -> None:
    d.assert_equal(name, [rank[name] for rank in four], d.trajectory("single", name, dtype=F64), 1e-13, 4)


# Ways to shard


def _policies() -> dict[str, dict[str, Any]]:
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policies: dict[str, dict[str, Any]] = {
        "plain": {},
        "offloaded": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},  # pinning needs an accelerator
        "mixed": {"mp_policy": half},
        "kept": {"reshard_after_forward": False},
    }
    return {policy: d.trajectory("FSDP2", "look_sam", options, measure=True) for policy, options in policies.items()}


def test_policies(two: list[Any]) -> None:
    """Offloaded, and kept gathered between forward and backward: the same; bf16 passes: the same to bf16's rounding."""
    for ran in (rank["policies"] for rank in two):
        plain, offloaded, mixed, kept = (ran[name]["weights"] for name in ("plain", "offloaded", "mixed", "kept"))
        assert torch.equal(offloaded, plain) and torch.equal(kept, plain)
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


def test_collectives_are_counted(two: list[Any]) -> None:
    """Beside FSDP2's own: one small all-reduce for each perturbation, of the norm."""
    for rank in two:
        for count in rank["counts"].values():
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


@pytest.mark.parametrize("case", ["looks", "kept", "forward", "after", "backward"])
def test_every_pass_sees_the_present_weights(case: str, two: list[Any]) -> None:
    """Not what FSDP2 gathered before the shards moved."""
    for rank in (each["looks"] for each in two):
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


def test_displacement_is_of_all_shards(two: list[Any]) -> None:
    for rank in two:
        for wanted, moved, same in rank["half"]:
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


def test_states_cross_and_refusals_say_what_to_do(two: list[Any]) -> None:
    for crossed, (rank, unsynced), world in (each["last"] for each in two):
        assert crossed and world == 2
        assert "expected the DistributedDataParallel model itself" in rank
        assert "micro_batches" in unsynced
