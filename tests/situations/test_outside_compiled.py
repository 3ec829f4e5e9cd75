"""Modules outside the model under checkpointing, and beside what is compiled."""

from __future__ import annotations

import pytest
import torch
from tests.situations.test_outside import TIGHT, Watched, buffers, built, critic, draws, generator, outside
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_goes_on_working(reentrant: bool, writes: bool) -> None:
    """Without reentrance a checkpointed discriminator is found as well; with it, by the modules that run."""
    g, d = generator(), critic()
    _, sharp = built("sam", g)
    loss = Watched(g, d)
    x = draws(1)[0]

    def checkpointed() -> Tensor:
        loss.passes.append(({k: p.detach().clone() for k, p in g.named_parameters()}, buffers(d), x))
        return nn.functional.softplus(-checkpoint(d, g(x), use_reentrant=reentrant)).mean() * loss.noise.exp()

    def writing() -> Tensor:  # as a loss does that moves a teacher by hand
        return checkpointed().mul_(1)

    sharp.backward(writing if writes else checkpointed)
    for param, wanted in zip(outside(loss), loss.by_hand(-1)[0], strict=True):
        torch.testing.assert_close(param.grad, wanted, **TIGHT)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", ["function", "model", "step"])
def test_beside_what_is_compiled_it_is_found_without_running(what: str) -> None:
    g, d = generator(), critic()
    model = torch.compile(g, backend="eager") if what == "model" else g
    _, sharp = built("sam", model)
    loss = Watched(g, d)

    def run(x: Tensor) -> Tensor:
        return loss.value(model, d, x)

    value = torch.compile(run, backend="eager") if what == "function" else run

    @torch.compiler.disable
    def note(x: Tensor) -> None:
        loss.passes.append(({k: p.detach().clone() for k, p in g.named_parameters()}, buffers(d), x))

    def noted(x: Tensor) -> Tensor:
        note(x)
        return value(x)

    def step(x: Tensor) -> Tensor:
        return sharp.backward(noted, x)

    run_step = torch.compile(step, backend="eager") if what == "step" else step
    for x in draws(2):
        loss.passes.clear()
        run_step(x)
        for param, wanted in zip(outside(loss), loss.by_hand(-1)[0], strict=True):
            torch.testing.assert_close(param.grad, wanted, **TIGHT)
            param.grad = None
        torch.testing.assert_close(buffers(d), loss.by_hand(0)[1], **TIGHT)
        assert len(loss.passes) == 2
        g.zero_grad()
