"""Several modules, wrappers and references that held before: two DDPs, a GAN in one list, DPO and KL to the base."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steppe

RHO, LR, TIGHT = 0.3, 0.1, {"rtol": 1e-10, "atol": 1e-12}
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def one_process(tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def part(i: int, o: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(i, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, o)).double()


def climbed(params: list[nn.Parameter], loss: Any) -> None:
    """SAM's gradient by hand, in ``.grad``; statistics as the first pass leaves them."""
    grads = torch.autograd.grad(loss(), params)
    length = torch.cat([g.flatten() for g in grads]).norm()
    saved = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, grads, strict=True):
            p += RHO * g / length
    last = torch.autograd.grad(loss(), params)
    for p, w, g in zip(params, saved, last, strict=True):
        p.data.copy_(w)
        p.grad = g


def equal(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, **TIGHT, msg=name)


def test_two_ddps_in_one_list(one_process: None) -> None:
    a, b = part(3, 4, 1), part(4, 1, 2)
    twins = nn.ModuleList([copy.deepcopy(a), copy.deepcopy(b)])
    model = nn.ModuleList([DistributedDataParallel(a), DistributedDataParallel(b)])
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=LR) for m in (model, twins))
    sharp = steppe.SAM(model, optimizer, rho=RHO)
    for _ in range(3):
        sharp.backward(lambda: model[1](model[0](X)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        climbed(list(twins.parameters()), lambda: twins[1](twins[0](X)).square().mean())
        plain.step()
    equal(nn.ModuleList([a, b]), twins)


def test_a_gan_in_one_list() -> None:
    """One optimizer and one object for each side; the other side is in the model but not in the optimizer."""
    model = nn.ModuleList([part(3, 4, 1), part(4, 1, 2)])
    twin = copy.deepcopy(model)
    bases = [torch.optim.SGD(m.parameters(), lr=LR) for m in model]
    plain = [torch.optim.SGD(m.parameters(), lr=LR) for m in twin]
    sharps = [steppe.SAM(model, base, rho=RHO) for base in bases]

    def loss(m: Any, side: int) -> Tensor:
        made = m[0](X)
        if side:
            real = X.sum(1, keepdim=True).expand(-1, 4)
            return nn.functional.softplus(m[1](made.detach())).mean() - m[1](real).mean()
        return nn.functional.softplus(-m[1](made)).mean()

    for _ in range(3):
        for side in (1, 0):
            model.zero_grad()
            sharps[side].backward(lambda side=side: loss(model, side))
            bases[side].step()
            climbed(list(twin[side].parameters()), lambda side=side: loss(twin, side))
            plain[side].step()
    equal(model, twin)


# --- a reference that is the model itself, without its adapter -----------------------------------------------------


def adapted() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0", "2"], r=2, lora_dropout=0.0))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    return model.double()


def scores(model: Any, x: Tensor, reference: bool) -> Tensor:
    with model.disable_adapter() if reference else contextlib.nullcontext(), torch.set_grad_enabled(not reference):
        return model(x).log_softmax(1)


def dpo(model: Any) -> Tensor:
    """The preference of answer 0 over answer 1, against the base."""
    policy, base = scores(model, X, False), scores(model, X, True)
    return -nn.functional.logsigmoid(0.5 * ((policy - base)[:, 0] - (policy - base)[:, 1])).mean()


def kl(model: Any) -> Tensor:
    policy, base = scores(model, X, False), scores(model, X, True)
    return (policy.exp() * (policy - base)).sum(1).mean() - policy[:, 2].mean()


@pytest.mark.parametrize("loss", [dpo, kl])
@pytest.mark.parametrize("rho", [0.0, RHO])
def test_against_the_base_without_its_adapter(loss: Any, rho: float) -> None:
    """With rho = 0 bit for bit the plain loop, else SAM by hand."""
    model = adapted()
    twin = copy.deepcopy(model)
    optimizer, plain = (torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=LR) for m in (model, twin))
    sharp = steppe.SAM(model, optimizer, rho=rho)
    for _ in range(3):
        sharp.backward(lambda: loss(model))
        optimizer.step()
        optimizer.zero_grad()
        if rho:
            climbed(plain.param_groups[0]["params"], lambda: loss(twin))
        else:
            plain.zero_grad()
            loss(twin).backward()
        plain.step()
    if rho:
        equal(model, twin)
    else:
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
