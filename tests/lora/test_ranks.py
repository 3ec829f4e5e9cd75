"""BAR on several processes: every rank moves alike, as one process on the whole batch does; norms over all shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.loops import distributed as d
from tests.lora import factors as f
from torch import Tensor, nn

import steppe

STEPS = 6


def _wrapped(kind: str, model: nn.Module) -> nn.Module:
    if kind != "FSDP2":
        return d.wrap(kind, model)  # type: ignore[arg-type]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    fully_shard(model.first, mesh=mesh)  # type: ignore[arg-type]
    return fully_shard(model, mesh=mesh)


def _trajectory(kind: str, rule: str, dtype: torch.dtype = torch.float64, micro: bool = False) -> dict[str, Any]:
    model = _wrapped(kind, f.net(dtype))
    optimizer = torch.optim.SGD(f.trained(model), lr=0.1, momentum=0.9)
    bar = steppe.BAR(model, optimizer, rule=rule, mu=2.0, total_steps=STEPS)
    for x, y in d.batches(STEPS, dtype):
        if micro:
            half = len(x) // 2
            pieces = [(x[:half], y[:half]), (x[half:], y[half:])]
            bar.backward(lambda b: d.loss_of(model)(b) / 2, micro_batches=pieces)
        else:
            d.loss_of(model)((x, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"weights": d.weights(model), "balancedness": bar.balancedness(), "step": bar.step}


def _rules(kind: str) -> dict[str, Any]:
    return {rule: _trajectory(kind, rule) for rule in ("nbar", "obar")}


def _all(kind: str) -> dict[str, Any]:
    found = _rules(kind)
    found["bf16"] = _trajectory(kind, "nbar", torch.bfloat16)
    if kind == "DDP":
        found["micro"] = _trajectory(kind, "nbar", micro=True)
    return found


@pytest.fixture(scope="module")
def pair_of_ranks() -> list[dict[str, Any]]:
    return d.run(2, _everything)


def _everything() -> dict[str, Any]:
    reductions = {rule: _reductions(rule) for rule in ("nbar", "obar")}
    return {"DDP": _all("DDP"), "FSDP2": _all("FSDP2"), "reductions": reductions, "shards": _shards_decide_alone()}


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_equals_one_process(kind: str, pair_of_ranks: list[dict[str, Any]]) -> None:
    ranks = [rank[kind] for rank in pair_of_ranks]
    _assert_alike(ranks)
    for rule in ("nbar", "obar"):
        single = _trajectory("single", rule)
        assert float((ranks[0][rule]["weights"] - single["weights"]).abs().max()) < 1e-12
        assert ranks[0][rule]["balancedness"] == pytest.approx(single["balancedness"], abs=1e-12)
    if kind == "DDP":
        assert float((ranks[0]["micro"]["weights"] - ranks[0]["nbar"]["weights"]).abs().max()) < 1e-12


def test_a_rank_may_hold_nothing_of_a_factor() -> None:
    """The factors have two rows, and there are three ranks."""
    _assert_alike(d.run(3, _rules, "FSDP2"))


def _assert_alike(ranks: list[dict[str, Any]]) -> None:
    for case in ranks[0]:
        assert all(torch.equal(r[case]["weights"], ranks[0][case]["weights"]) for r in ranks), case
        assert all(r[case]["step"] == STEPS and r[case]["weights"].isfinite().all() for r in ranks)


def _reductions(rule: str) -> int:
    model = _wrapped("FSDP2", f.net())
    optimizer = torch.optim.SGD(f.trained(model), lr=0.1)
    steppe.BAR(model, optimizer, rule=rule, total_steps=STEPS)
    d.loss_of(model)(next(d.batches(1, torch.float64))).backward()
    with d.counted() as seen:
        optimizer.step()
    return seen["all_reduce"]


def test_one_reduction_for_all_norms_of_a_kind(pair_of_ranks: list[dict[str, Any]]) -> None:
    """nbar needs the gradients' norms, obar the factors' too (to leave pairs without a gradient alone)."""
    assert all(rank["reductions"] == {"nbar": 1, "obar": 2} for rank in pair_of_ranks)


def _shards_decide_alone() -> Tensor:
    """Each rank's shard of the gradients would decide otherwise: x has the larger one here, y there."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    x, y = (nn.Parameter(distribute_tensor(torch.ones(2, 1), mesh, [Shard(0)])) for _ in range(2))
    model = nn.ParameterDict({"x": x, "y": y})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    steppe.BAR(model, optimizer, mu=1.0, schedule="constant", pairs=[("p", "x", "y")])
    x.grad, y.grad = (distribute_tensor(torch.tensor(g), mesh, [Shard(0)]) for g in ([[3.0], [1.0]], [[2.0], [2.0]]))
    optimizer.register_step_pre_hook(lambda *_: optimizer.zero_grad())
    optimizer.step()
    return d.whole(x)


def test_the_norm_is_of_the_whole_factor(pair_of_ranks: list[dict[str, Any]]) -> None:
    assert all(torch.equal(rank["shards"], torch.full((2, 1), 1.5)) for rank in pair_of_ranks)
