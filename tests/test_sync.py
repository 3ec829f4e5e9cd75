"""Whose gradient the ascent follows: what is put off, and what is refused, in a group of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.loops import distributed as d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import steppe
from steppe._sync import Averaging, average_earlier


@pytest.fixture
def ddp(tmp_path: Path) -> Iterator[DistributedDataParallel]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        yield DistributedDataParallel(d.network())
    finally:
        dist.destroy_process_group()


def _averaging(model: nn.Module, sync: Any = "rank", schedule: Any = None, combine: Any = None) -> Averaging:
    return Averaging(sync, model, steppe.Ascent(), schedule or steppe.Always(), combine or steppe.Replace())


def test_only_the_first_pass_goes_without_sync(ddp: DistributedDataParallel) -> None:
    sharp = steppe.SAM(ddp, torch.optim.SGD(ddp.parameters(), 0.1), sync="rank")
    syncs, batch = [], next(d.batches(1))
    sharp.backward(lambda: (syncs.append(ddp.require_backward_grad_sync), d.loss_of(ddp)(batch))[1])
    assert syncs == [False, True]
    assert ddp.require_backward_grad_sync


def test_off_steps_average_as_any_backward(ddp: DistributedDataParallel) -> None:
    sharp = steppe.RST(ddp, torch.optim.SGD(ddp.parameters(), 0.1), rho=0.1, p=0.0, sync="rank")
    syncs, batch = [], next(d.batches(1))
    sharp.backward(lambda: (syncs.append(ddp.require_backward_grad_sync), d.loss_of(ddp)(batch))[1])
    assert syncs == [True]


def test_global_puts_nothing_off(ddp: DistributedDataParallel) -> None:
    averaging = _averaging(ddp, "global")
    assert not averaging.puts_off
    with averaging.first_pass():
        assert ddp.require_backward_grad_sync


@pytest.mark.parametrize("sync", ["rank", 1])
def test_one_rank_alone_is_the_average(ddp: DistributedDataParallel, sync: str | int) -> None:
    optimizer = d.base("sam", ddp)
    d.advance(ddp, optimizer, d.sharpen("sam", ddp, optimizer, sync=sync), stop=5)
    single = d.network()
    own = d.base("sam", single)
    d.advance(single, own, d.sharpen("sam", single, own), stop=5)
    assert torch.equal(d.weights(ddp), d.weights(single))


class Wrapper(nn.Module):
    """Holds a model as torch.compile and Fabric do."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)


@pytest.mark.parametrize("name", ["_orig_mod", "_forward_module"])
def test_it_is_found_inside_other_wrappers(ddp: DistributedDataParallel, name: str) -> None:
    assert _averaging(Wrapper(name, ddp)).puts_off
    with pytest.raises(ValueError, match="expected the DistributedDataParallel model itself"):
        _averaging(Wrapper(name, ddp.module))


@pytest.mark.parametrize("sync", ["ranks", 0, -1, True, 1.5, None])
def test_other_words_are_refused(ddp: DistributedDataParallel, sync: Any) -> None:
    with pytest.raises(ValueError, match="expected 'global', 'rank' or a number of ranks"):
        _averaging(ddp, sync)


def test_a_number_must_divide_the_ranks(ddp: DistributedDataParallel) -> None:
    with pytest.raises(ValueError, match="a number that divides it"):
        _averaging(ddp, 2)


@pytest.mark.parametrize(
    "parts",
    [{"combine": steppe.Mix(0.5)}, {"combine": steppe.Reuse()}, {"schedule": steppe.AboveNorm(10)}],
    ids=["mix", "reuse", "norm"],
)
def test_what_compares_gradients_needs_the_average(ddp: DistributedDataParallel, parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="use sync='global'"):
        _averaging(ddp, **parts)


def test_static_graphs_are_refused(ddp: DistributedDataParallel) -> None:
    static = DistributedDataParallel(d.network(), static_graph=True)
    with pytest.raises(ValueError, match="static_graph"):
        _averaging(static)


def test_phases_cannot_put_off_a_pass_that_they_do_not_run(ddp: DistributedDataParallel) -> None:
    sharp = steppe.SAM(ddp, torch.optim.SGD(ddp.parameters(), 0.1), sync="rank")
    d.loss_of(ddp)(next(d.batches(1))).backward()
    with pytest.raises(RuntimeError, match="sync='global'"):
        sharp.ascend()


def test_a_model_without_ranks_has_nothing_to_average() -> None:
    grads = [torch.ones(3)]
    average_earlier(d.network(), grads)
    assert torch.equal(grads[0], torch.ones(3))
    with pytest.raises(ValueError, match="sync='rank' was given with a Sequential"):
        _averaging(d.network())
