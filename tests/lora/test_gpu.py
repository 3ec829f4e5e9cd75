"""BAR on a GPU: no synchronisation of host and device in the optimizer's step, and the same result as on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.lora import factors as f
from tests.problems import batches, loss_of
from torch import nn

import steppe

pytestmark = pytest.mark.gpu


def on(device: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    return [(x.to(device), y.to(device)) for x, y in batches(6, dtype)]


@pytest.mark.parametrize("rule", ["nbar", "obar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"fused": True}, {"capturable": True}], ids=str)
def test_the_step_does_not_wait_for_the_device(rule: str, dtype: torch.dtype, settings: dict[str, bool]) -> None:
    model = f.net(dtype).cuda()
    optimizer = torch.optim.AdamW(f.trained(model), lr=1e-2, **settings)
    steppe.BAR(model, optimizer, rule=rule, total_steps=6)
    for i, batch in enumerate(on("cuda", dtype)):
        loss_of(model)(batch).backward()
        torch.cuda.set_sync_debug_mode("error" if i else "default")  # the first step builds what is kept
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        optimizer.zero_grad()


def test_a_fused_step_under_a_scaler_does_not_wait_for_bar() -> None:
    model = f.net(torch.float32).cuda()
    optimizer = torch.optim.AdamW(f.trained(model), lr=1e-2, fused=True)
    bar, scaler = steppe.BAR(model, optimizer, total_steps=9), torch.amp.GradScaler("cuda")
    for i, batch in enumerate(on("cuda")):
        scaler.scale(loss_of(model)(batch)).backward()
        if i == 2:
            model.head.weight.grad[0, 0] = torch.inf
        torch.cuda.set_sync_debug_mode("error" if i else "default")
        try:
            scaler.step(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        scaler.update()
        optimizer.zero_grad()
    assert bar.step == 5


@pytest.mark.parametrize("rule", ["nbar", "obar"])
def test_the_gpu_agrees_with_the_cpu(rule: str) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        model: nn.Module = f.net().to(device)
        optimizer = torch.optim.SGD(f.trained(model), lr=0.05)
        steppe.BAR(model, optimizer, rule=rule, mu=2.0, total_steps=6)
        for batch in on(device, torch.float64):
            loss_of(model)(batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=1e-11)
