"""DistributedDataParallel: every rank perturbs alike, or each its own way, and the ranks stay bit-identical."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.loops import distributed as d
from tests.loops.ddp_statistics import every_statistics
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import steppe

ALL = d.LOOP_METHODS + d.MORE_METHODS
F32, F64 = torch.float32, torch.float64
OWN = ("asam", "rst")  # of those that may follow each rank's own gradient: every step, and some
VIEWED, FLOAT32 = ("grst", "look_sam"), ("sam", "asam", "grst", "look_sam")
Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def two() -> Ranks:
    """All that two ranks do, in one group."""
    works = {
        "fp64": (d.trajectories, "DDP", ALL, F64),
        "fp32": (d.trajectories, "DDP", FLOAT32),
        "views": (_viewed,),
        "beside views": (_beside_views,),
        "bf16": (_bf16,),
        "own": (_every_own, ("rank", 1, 2)),
        "sent": (_every_sent,),
        "statistics": (every_statistics,),
        "sync": (_sync_batch_norm,),
        "pieces": (_every_in_pieces,),
        "refused": (_refusals,),
    }
    return d.run(2, d.every, works)


@pytest.fixture(scope="module")
def four() -> Ranks:
    return d.run(4, d.every, {"fp64": (d.trajectories, "DDP", ("look_sam",), F64), "own": (_every_own, ("rank", 2))})


# Equal to one process on the whole batch


def _viewed() -> dict[str, Tensor]:
    return {name: d.trajectory("DDP", name, {"gradient_as_bucket_view": True})["weights"] for name in VIEWED}


def _bf16() -> Tensor:
    weights: Tensor = d.trajectory("DDP", "sam", dtype=torch.bfloat16, rounding="stochastic")["weights"]
    return weights


@pytest.mark.parametrize("name", ALL)
def test_equals_one_process(name: str, two: Ranks, record_property: d.Record) -> None:
    d.record(record_property, "DDP", name)
    d.assert_equal(name, [rank["fp64"][name] for rank in two], d.trajectory("single", name, dtype=F64), 1e-13, 2)


@pytest.mark.parametrize("name", FLOAT32)
def test_equals_one_process_in_float32(name: str, two: Ranks) -> None:
    d.assert_equal(name, [rank["fp32"][name] for rank in two], d.trajectory("single", name), 1e-6, 2)


def test_four_ranks_equal_one_process(four: Ranks) -> None:
    single = d.trajectory("single", "look_sam", dtype=F64)
    d.assert_equal("look_sam", [rank["fp64"]["look_sam"] for rank in four], single, 1e-13, 4)


@pytest.mark.parametrize("name", VIEWED)
def test_gradients_that_are_views_of_buckets_change_nothing(name: str, two: Ranks) -> None:
    for rank in two:
        assert torch.equal(rank["views"][name], rank["fp32"][name]["weights"])


def _beside_views() -> list[list[Tensor]]:
    """Gradients at every step, where some lay in the buckets before: an auxiliary loss's, or a skipped step's zeros."""
    found = []
    for view in (False, True):
        for name in ("sam", "grst"):
            model = d.wrap("DDP", d.network(), gradient_as_bucket_view=view)
            optimizer, seen = d.base(name, model), []
            sharp = d.sharpen(name, model, optimizer)
            for batch in d.batches(4):
                if name == "sam":
                    model(batch[0]).square().mean().backward()
                sharp.backward(d.loss_of(model), batch)
                seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
                optimizer.step()
                optimizer.zero_grad(set_to_none=name == "sam")
            found.append(seen)
    return found


def test_gradients_that_lay_in_buckets_before_are_neither_lost_nor_counted_twice(two: Ranks) -> None:
    for sam, grst, sam_in_views, grst_in_views in (rank["beside views"] for rank in two):
        for plain, viewed in ((sam, sam_in_views), (grst, grst_in_views)):
            assert len(plain) == len(viewed) > 0 and all(map(torch.equal, plain, viewed))


def test_stochastic_rounding_draws_alike_on_all_ranks(two: Ranks) -> None:
    first, second = (rank["bf16"] for rank in two)
    assert torch.equal(first, second)


# Each rank, or group of ranks, its own perturbation


def _own(name: str, sync: str | int) -> dict[str, Any]:
    """The weights seen by every pass, and after all steps."""
    model = d.wrap("DDP", d.network())
    optimizer = d.base(name, model)
    sharp = d.sharpen(name, model, optimizer, sync=sync)
    seen: list[Tensor] = []

    def spying(batch: Any) -> Tensor:
        seen.append(d.weights(model))
        return d.loss_of(model)(batch)

    for batch in d.batches():
        sharp.backward(spying, batch)
        optimizer.step()
        optimizer.zero_grad()
    return {"seen": seen, "weights": d.weights(model)}


def _every_own(syncs: tuple[str | int, ...]) -> dict[str | int, dict[str, dict[str, Any]]]:
    return {sync: {name: _own(name, sync) for name in OWN} for sync in syncs}


CASES = [(2, "rank", 2), (2, 1, 2), (4, "rank", 4), (4, 2, 2)]


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("world, sync, parts", CASES)
def test_own_perturbations_are_m_sharpness(
    name: str, world: int, sync: str | int, parts: int, two: Ranks, four: Ranks
) -> None:
    """The same as one process that calls backward once for each part of the batch that perturbs alike."""
    ranks = [rank["own"][sync][name] for rank in (two if world == 2 else four)]
    assert all(torch.equal(rank["weights"], ranks[0]["weights"]) for rank in ranks)
    assert (ranks[0]["weights"] - _m_sharpness(name, parts)).abs().max() <= 1e-6
    passes = [[rank["seen"][i] for rank in ranks] for i in range(len(ranks[0]["seen"]))]
    size = world // parts
    alike = [torch.equal(seen[0], seen[size - 1]) for seen in passes]
    same = [torch.equal(seen[0], seen[-1]) for seen in passes]
    ascents = len(passes) - d.STEPS
    assert all(alike) and same.count(False) == ascents > 0, "ranks differ in the perturbed passes alone"


def _m_sharpness(name: str, parts: int) -> Tensor:
    model = d.network()
    optimizer = d.base(name, model)
    sharp = d.sharpen(name, model, optimizer)
    for x, y in d.batches():
        for part in zip(x.chunk(parts), y.chunk(parts), strict=True):
            sharp.backward(lambda: d.loss_of(model)(part) / parts)
        optimizer.step()
        optimizer.zero_grad()
    return d.weights(model)


@pytest.mark.parametrize("name", OWN)
def test_all_ranks_in_one_group_is_the_average(name: str, two: Ranks) -> None:
    assert (two[0]["own"][2][name]["weights"] - d.trajectory("single", name)["weights"]).abs().max() <= 1e-6


# What is sent


def _sent(name: str, micro: bool = False, **common: Any) -> dict[str, int]:
    """All-reduces of DDP's buckets (this model is one bucket) and of steppe, over STEPS steps."""
    model = d.wrap("DDP", d.network())
    optimizer = d.base(name, model)
    sharp = d.sharpen(name, model, optimizer, **common)
    buckets = 0

    def count(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        nonlocal buckets
        buckets += 1
        return allreduce_hook(group, bucket)

    assert isinstance(model, DistributedDataParallel)
    model.register_comm_hook(None, count)
    with d.counted() as counts:
        decisions = _in_micro_batches(model, optimizer, sharp) if micro else d.advance(model, optimizer, sharp)
    # The hook sends each bucket by dist.all_reduce too.
    return {"ascents": sum(decisions), "buckets": buckets, "steppe": counts["all_reduce"] - buckets}


def _in_micro_batches(model: nn.Module, optimizer: torch.optim.Optimizer, sharp: steppe.SharpnessAware) -> list[bool]:
    decisions = []
    for x, y in d.batches():
        pieces = list(zip(x.chunk(2), y.chunk(2), strict=True))
        sharp.backward(d.loss_of(model), micro_batches=pieces)
        decisions.append(sharp.last.ascended)
        optimizer.step()
        optimizer.zero_grad()
    return decisions


def _every_sent() -> dict[str, dict[str, int]]:
    return {
        "global": _sent("sam"),
        "rank": _sent("sam", sync="rank"),
        "group": _sent("sam", sync=2),
        "rst global": _sent("rst"),
        "rst rank": _sent("rst", sync="rank"),
        "look_sam": _sent("look_sam"),
        "micro": _sent("sam", micro=True),
    }


def test_all_reduces_are_counted(two: Ranks) -> None:
    """One a pass; sync="rank" saves one for each ascending step, and nothing but gradients is ever sent."""
    sent = two[0]["sent"]
    steps, some = d.STEPS, sent["rst global"]["ascents"]
    assert sent["global"] == {"ascents": steps, "buckets": 2 * steps, "steppe": 0}
    assert sent["rank"] == {"ascents": steps, "buckets": steps, "steppe": 0}
    assert sent["micro"] == sent["global"], "micro-batches are averaged once a pass"
    assert sent["group"] == {"ascents": steps, "buckets": steps, "steppe": steps}
    assert 0 < some < steps
    assert sent["rst global"]["buckets"] == steps + some
    assert sent["rst rank"]["buckets"] == steps
    assert sent["look_sam"]["buckets"] == steps + 2  # refreshes at 0 and 3


# Statistics


def test_running_statistics_move_once(two: Ranks) -> None:
    for plain, tiny, own, real in (rank["statistics"] for rank in two):
        for name, value in plain.items():
            assert torch.equal(tiny[name], value), name
            assert torch.equal(own[name], value), name
        assert real["1.num_batches_tracked"] == real["3.count"] == d.STEPS


def _sync_batch_norm() -> str:
    try:
        nn.SyncBatchNorm(7)(torch.randn(4, 7))
    except ValueError as error:
        return str(error)
    return "ran"


def test_sync_batch_norm_needs_a_gpu_by_torch_s_own_word(two: Ranks) -> None:
    assert all("expected input tensor to be on" in rank["sync"] for rank in two)


# Accumulation


def _in_pieces(exact: bool, **options: Any) -> Tensor:
    """LookSAM on micro-batches: exactly, or with DDP's own no_sync recipe (m-sharpness)."""
    model = d.wrap("DDP", d.network(), **options)
    assert isinstance(model, DistributedDataParallel)
    optimizer = d.base("look_sam", model)
    sharp = d.sharpen("look_sam", model, optimizer)
    for x, y in d.batches():
        pieces = list(zip(x.chunk(2), y.chunk(2), strict=True))
        if exact:
            sharp.backward(lambda piece: d.loss_of(model)(piece) / 2, micro_batches=pieces)
        else:
            with model.no_sync():
                sharp.backward(lambda: d.loss_of(model)(pieces[0]) / 2)
            sharp.backward(lambda: d.loss_of(model)(pieces[1]) / 2)
        optimizer.step()
        optimizer.zero_grad()
    return d.weights(model)


def _every_in_pieces() -> list[Tensor]:
    return [_in_pieces(True), _in_pieces(False), _in_pieces(True, static_graph=True)]


def _each_share_alone() -> Tensor:
    """One process: each rank's first micro-batch perturbed by itself, then the second ones of both ranks together."""
    model = d.network()
    optimizer = d.base("look_sam", model)
    sharp = d.sharpen("look_sam", model, optimizer)
    for x, y in d.batches():
        a, b, c, e = zip(x.chunk(4), y.chunk(4), strict=True)  # of rank 0, rank 0, rank 1, rank 1
        for first in (a, c):
            sharp.backward(lambda: d.loss_of(model)(first) / 4)
        sharp.backward(lambda: d.loss_of(model)((torch.cat([b[0], e[0]]), torch.cat([b[1], e[1]]))) / 2)
        optimizer.step()
        optimizer.zero_grad()
    return d.weights(model)


def test_accumulation(two: Ranks) -> None:
    (exact, own, static), others = (rank["pieces"] for rank in two)
    assert all(map(torch.equal, (exact, own, static), others))
    assert (static - exact).abs().max() <= 1e-6, "torch's no_sync knows no static graph"
    assert (exact - d.trajectory("single", "look_sam")["weights"]).abs().max() <= 1e-6
    averaged = _each_share_alone()
    assert (own - averaged).abs().max() <= 1e-6, "gradients of micro-batches without sync are averaged with the last"
    assert (own - exact).abs().max() > 1e-3, "the two ways are told apart"


# What is refused


def _refusals() -> list[str]:
    model = d.wrap("DDP", d.network())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    said = []
    for make in (
        lambda: steppe.LookSAM(model, optimizer, sync="rank"),
        lambda: steppe.AESAM(model, optimizer, total_steps=3, sync="rank"),
        lambda: steppe.SAM(model, optimizer, sync=3),
        lambda: steppe.SAM(model, optimizer, sync="none"),
        lambda: steppe.SAM(model.module, optimizer, sync="rank"),
    ):
        try:
            said.append(f"accepted: {make()}")
        except ValueError as error:
            said.append(str(error))
    return said


def test_what_needs_the_average_refuses_to_go_without(two: Ranks) -> None:
    look, ae, three, none, unwrapped = two[0]["refused"]
    assert "use sync='global'" in look and "use sync='global'" in ae
    assert "a number that divides it" in three
    assert "'global', 'rank' or a number" in none
    assert "the DistributedDataParallel model itself" in unwrapped
