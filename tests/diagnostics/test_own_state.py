"""What a loss keeps beside the model (a hidden state, sums, metrics, a teacher) is after a look as it was before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

import steppe
from steppe import diagnostics

BATCH = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(8) % 2


class Loop:
    """A training that carries a hidden state on, counts, and has a module with statistics beside the model."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.before = nn.Linear(3, 2).double(), nn.BatchNorm1d(3).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.hidden, self.total, self.losses = torch.zeros(8, 3).double(), 0.0, MeanMetric()

    def loss(self, batch: Any) -> Tensor:
        x = self.before(batch[0] + self.hidden)
        found = nn.functional.cross_entropy(self.model(x), batch[1])
        self.hidden = self.hidden + x.detach() / 2
        self.total += found.item()
        self.losses.update(found.detach())
        return found

    def kept(self) -> list[Any]:
        grads = [None if p.grad is None else p.grad.tolist() for p in self.before.parameters()]
        state = [t.tolist() for t in self.before.state_dict().values()]
        return [self.hidden.tolist(), self.total, float(self.losses.weight), state, grads]


LOOKS: dict[str, Callable[[Loop], Any]] = {
    "lambda_max": lambda loop: diagnostics.lambda_max(loop.model, loop.loss, [BATCH], steps=6).value,
    "m_sharpness": lambda loop: diagnostics.m_sharpness(loop.model, loop.loss, [BATCH], [0.1], draws=1).rises,
    "loss_plane": lambda loop: diagnostics.loss_plane(loop.model, loop.loss, [BATCH], points=3).loss,
    "find_rho": lambda loop: (
        steppe.find_rho(loop.model, loop.optimizer, loop.loss, [BATCH], radii=[0.1], trial=4, looks=1).curve
    ),
}


@pytest.mark.parametrize("look", LOOKS)
def test_it_is_as_before_and_every_pass_begins_from_it(look: str) -> None:
    loop = Loop()
    loop.loss(BATCH).backward()
    before, once = loop.kept(), LOOKS[look](loop)
    assert loop.kept() == before
    assert LOOKS[look](loop) == once


def test_lambda_max_is_that_of_the_hessian_with_the_hidden_state_as_it_is() -> None:
    loop = Loop()
    loop.loss(BATCH)
    x = loop.before.train()(BATCH[0] + loop.hidden).detach()

    def loss(weight: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ weight.T + loop.model.bias.detach(), BATCH[1])

    loop.model.bias.requires_grad_(False)
    hessian = torch.autograd.functional.hessian(loss, loop.model.weight.detach()).reshape(6, 6)  # type: ignore
    found = diagnostics.lambda_max(loop.model, loop.loss, [BATCH], steps=6)
    torch.testing.assert_close(found.value, float(torch.linalg.eigvalsh(hessian)[-1]), rtol=1e-9, atol=0)


def test_a_probe_changes_no_training() -> None:
    def trained(watched: bool) -> list[Any]:
        loop = Loop()
        sharp = steppe.SAM(loop.model, loop.optimizer, rho=0.1)
        probe = steppe.Probe(sharp, every=1, loss_of=loop.loss, batches=[BATCH], lanczos=2)
        for _ in range(3):
            if watched:
                with probe:
                    sharp.backward(loop.loss, BATCH)
            else:
                sharp.backward(loop.loss, BATCH)
            loop.optimizer.step()
            loop.optimizer.zero_grad()
        return [loop.model.weight.tolist(), *loop.kept()]

    assert trained(True) == trained(False)
