"""Running statistics of a model whose ranks share the batch, with a method and without."""

from typing import Any

import torch
import torch.distributed as dist
from tests.loops import distributed as d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe


class Shared(nn.Module):
    """A custom running statistic over all ranks, as SyncBatchNorm's (which refuses CPU tensors)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(7))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.detach().mean(0)
            dist.all_reduce(mean)
            self.mean.lerp_(mean / dist.get_world_size(), 0.1)
            self.count += 1
            return x - mean / dist.get_world_size()
        return x - self.mean


def _statistics(rho: float | None, **common: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), Shared(), nn.Linear(7, 3))
    model = DistributedDataParallel(layers)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sharp = None if rho is None else steppe.SAM(model, optimizer, rho=rho, **common)
    for batch in d.batches():
        f = d.loss_of(model)
        f(batch).backward() if sharp is None else sharp.backward(f, batch)
        optimizer.step()
        optimizer.zero_grad()
    return {k: v.clone() for k, v in layers.state_dict().items()}


def every_statistics() -> list[dict[str, Tensor]]:
    # A radius that no weight can follow: both passes see the same weights, so all must be as in the plain loop.
    return [_statistics(None), _statistics(1e-20), _statistics(1e-20, sync="rank"), _statistics(0.1)]
