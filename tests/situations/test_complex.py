"""Complex parameters: every method equals itself on the same model written with real numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

STEPS = 9


class Norm(nn.LayerNorm):
    """A normalisation of complex rows, with a complex scale and shift."""

    def __init__(self, size: int) -> None:
        super().__init__(size, dtype=torch.float64)
        self.weight, self.bias = complex_parameter(size), complex_parameter(size)

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().square().mean(1, keepdim=True).sqrt() * seen(self.weight) + seen(self.bias)


class Net(nn.Module):
    """The same function of the same numbers, in complex tensors or in pairs of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = complex_parameter(4, 3), Norm(4)
        self.last, self.bias = complex_parameter(1, 4), complex_parameter(1)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x @ seen(self.first).T)
        h = torch.complex(h.real.tanh(), h.imag.tanh())
        return (h @ seen(self.last).T + seen(self.bias)) * self.scale


def complex_parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, dtype=torch.complex128))


def seen(param: Tensor) -> Tensor:
    return param if param.is_complex() else torch.view_as_complex(param)


def models() -> tuple[Net, Net]:
    torch.manual_seed(0)
    one, other = Net(), Net()
    for module, twin in zip(one.modules(), other.modules(), strict=True):
        for name, p in module.named_parameters(recurse=False):
            setattr(twin, name, nn.Parameter(torch.view_as_real(p.detach()).clone() if p.is_complex() else p.clone()))
    return one, other


def trained(name: str, settings: dict[str, Any], model: nn.Module) -> tuple[list[Tensor], list[bool], Any]:
    row = METHODS[name]
    optimizer = (row.optimizer or (lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9)))(model.parameters())
    sharp = row.recipe(model, optimizer, **settings)
    source, ascended = torch.Generator().manual_seed(1), []
    for _ in range(STEPS):
        x = torch.randn(6, 3, dtype=torch.complex128, generator=source)
        y = torch.randn(6, 1, dtype=torch.complex128, generator=source)

        def losses(batch: Any) -> Tensor:
            each = (model(batch[0]) - batch[1]).abs().square().squeeze(1)
            return each if row.per_sample else each.mean()

        sharp.backward(losses, (x, y))
        ascended.append(bool(sharp.last.ascended))
        optimizer.step()
        optimizer.zero_grad()
    return [torch.view_as_real(seen(p.detach())) if p.ndim and name != "scale" and (p.is_complex() or p.shape[-1] == 2)
            else p.detach() for name, p in model.named_parameters()], ascended, sharp  # fmt: skip


def settings_of(name: str) -> list[dict[str, Any]]:
    if METHODS[name].lora:
        return [{"mu": 0.5, "schedule": "constant", "pairs": {"first": "last"}}]
    settings: dict[str, Any] = {"rho": 0.1}
    settings |= {"total_steps": STEPS} if name in ("aesam", "late_sam") else {}
    settings |= {"lr_max": 1.0} if name == "tail_sam" else {}
    more: dict[str, list[dict[str, Any]]] = {
        "look_sam": [{"k": 3}, {"k": 3, "push": "natural"}, {"k": 3, "push": "paper"}],
        "look_layer_sam": [{"k": 3}], "gsam": [{"alpha": 0.4}],
        "msam": [{}, {"decay": 0.8}], "fsam": [{"sigma": 1.0}], "grst": [{}], "rst": [{"p": 0.5}],
    }  # fmt: skip
    return [settings | each for each in more.get(name, [{}])]


# LoRA on complex layers: no such; noise is drawn by a tensor's name and shape, which are others there; for MuonSAM a
# matrix of complex numbers is one (test_spectral).
OTHERS = ("rwp", "arwp", "muon_sam")
NAMES = [n for n, row in METHODS.items() if (not row.lora or row.tunes == "mu") and n not in OTHERS]
CASES = [(name, i) for name in NAMES for i in range(len(settings_of(name)))]


@pytest.mark.parametrize(("name", "i"), CASES)
def test_equals_the_model_of_real_numbers(name: str, i: int) -> None:
    one, other = models()
    got, ascended, sharp = trained(name, settings_of(name)[i], one)
    wanted, alike, _ = trained(name, settings_of(name)[i], other)
    assert ascended == alike
    assert METHODS[name].lora or any(ascended)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    if not METHODS[name].lora:
        state = sharp.state_dict()
        sharp.load_state_dict(state)
        assert torch.equal(*(torch.cat([t.flatten() for t in flat(s)]) for s in (state, sharp.state_dict())))


def flat(state: Any) -> list[Tensor]:
    found = [torch.zeros(1, dtype=torch.float64)]
    for value in state.values() if isinstance(state, dict) else ():
        found += [value] if isinstance(value, Tensor) else flat(value)
    return found


@pytest.mark.parametrize("settings", [{"rounding": "stochastic"}, {"measure": True}, {"backup": "host"}])
def test_with_every_way_of_moving(settings: dict[str, Any]) -> None:
    one, other = models()
    results = []
    for model in (one, other):
        sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.4, **settings)
        x = torch.randn(6, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
        sharp.backward(lambda model=model, x=x: model(x).abs().square().mean())
        results.append((sharp.last, torch.view_as_real(seen(model.first.grad))))
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-10, atol=1e-10)
    for name in ("perturbation_norm", "displacement") if "measure" in settings else ():
        torch.testing.assert_close(getattr(results[0][0], name), getattr(results[1][0], name), rtol=1e-6, atol=0)
