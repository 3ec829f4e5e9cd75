"""DistributedDataParallel's join() of ranks with fewer batches: refused, unless all ranks end with the first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from tests.problems import BATCH, loss_of, net
from torch.nn.parallel import DistributedDataParallel

import steppe


@pytest.fixture()
def model() -> Iterator[DistributedDataParallel]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield DistributedDataParallel(net())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("method", [steppe.SAM, steppe.LookSAM, steppe.RST])
def test_uneven_ranks_are_refused(model: DistributedDataParallel, method: type) -> None:
    sharp = method(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with model.join():
        with pytest.raises(RuntimeError, match=r"in join\(\), where a rank that is out of .*; expected as many"):
            sharp.backward(loss_of(model), BATCH)
        loss_of(model)(BATCH).backward()
        with pytest.raises(RuntimeError, match=r"in join\(\)"):
            sharp.ascend()


@pytest.mark.parametrize("settings", [{"enable": False}, {"throw_on_early_termination": True}])
def test_ranks_that_end_together_are_right(model: DistributedDataParallel, settings: dict[str, bool]) -> None:
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with model.join(**settings):
        sharp.backward(loss_of(model), BATCH)
    assert sharp.last.ascended


def test_bar_is_refused(model: DistributedDataParallel) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steppe.BAR(model, optimizer, schedule="constant", pairs={"rare.weight": "last.weight"})
    with model.join():
        loss_of(model)(BATCH).backward()
        with pytest.raises(RuntimeError, match=r"in join\(\)"):
            optimizer.step()
