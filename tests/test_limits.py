"""Degenerate limits, bit for bit: where a method should be the base or SAM, it is exactly that."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from tests.problems import BASES, net, same, train
from torch import Tensor

import steppe

Make = Callable[..., steppe.SharpnessAware]

IS_BASE: dict[str, Make] = {
    "sam rho=0": lambda m, o: steppe.SAM(m, o, rho=0),
    "asam rho=0": lambda m, o: steppe.ASAM(m, o, rho=0.0),
    "layer_sam rho=0": lambda m, o: steppe.LayerSAM(m, o, rho=0),
    "look_sam rho=0": lambda m, o: steppe.LookSAM(m, o, rho=0),
    "look_sam natural rho=0": lambda m, o: steppe.LookSAM(m, o, rho=0, push="natural"),
    "gsam rho=0": lambda m, o: steppe.GSAM(m, o, rho=0),
    "fsam rho=0": lambda m, o: steppe.FSAM(m, o, rho=0),
    "wsam rho=0": lambda m, o: steppe.WSAM(m, o, rho=0),
    "aesam rho=0": lambda m, o: steppe.AESAM(m, o, rho=0, total_steps=12),
    "rst p=0": lambda m, o: steppe.RST(m, o, p=0.0),
    "rst warm-up": lambda m, o: steppe.RST(m, o, p=1.0, start_step=100),
    "grst kappa=0": lambda m, o: steppe.GRST(m, o, kappa=0.0),
    "gnp gamma=0": lambda m, o: steppe.GNP(m, o, gamma=0.0),
    "wsam gamma=0": lambda m, o: steppe.WSAM(m, o, gamma=0.0),
    "msam rho=0": lambda m, o: steppe.MSAM(m, o, rho=0),
    "s2_sam rho=0": lambda m, o: steppe.S2SAM(m, o, rho=0.0),
    "late_sam never": lambda m, o: steppe.LateSAM(m, o, start=100),
    "sl_sam rho=0 s=1": lambda m, o: steppe.SLSAM(m, o, rho=0.0, s=1.0),
}
IS_SAM: dict[str, Make] = {
    "rst p=1": lambda m, o: steppe.RST(m, o, p=1.0),
    "rst linear": lambda m, o: steppe.RST(m, o, p=1.0, schedule="linear1", total_steps=12),
    "grst p=1": lambda m, o: steppe.GRST(m, o, p=1.0),
    "gnp gamma=1": lambda m, o: steppe.GNP(m, o, gamma=1.0),
    "look_sam k=1": lambda m, o: steppe.LookSAM(m, o, k=1),
    "fsam sigma=0": lambda m, o: steppe.FSAM(m, o, sigma=0.0),
    "gsam alpha=0": lambda m, o: steppe.GSAM(m, o, alpha=0.0),
    "late_sam from 0": lambda m, o: steppe.LateSAM(m, o, start=0),
    "sl_sam s=1": lambda m, o: steppe.SLSAM(m, o, rho=0.05, s=1.0),
    "sl_sam s=1 by blocks": lambda m, o: steppe.SLSAM(m, o, rho=0.05, s=1.0, level="block"),
    "all samples": lambda m, o: steppe.SAM(m, o, samples=8),
    "all together": lambda m, o: steppe.SharpnessAware(
        m, o, schedule=steppe.Bernoulli(1.0) & steppe.Every(1), combine=steppe.Reuse(0.7, refresh=steppe.Mix(1.0))
    ),
}


# A limit does not depend on the optimizer or the kind of number: two pairs of them stand for all.
WITH = pytest.mark.parametrize(("base", "dtype"), [("sgd", torch.float64), ("adamw", torch.float32)])


def run(base: str, dtype: torch.dtype, make: Make | None, dropout: float = 0.25) -> dict[str, Tensor]:
    model = net(dtype, dropout)
    optimizer = BASES[base](model)
    return train(model, optimizer, make and make(model, optimizer))


@functools.cache
def base_alone(base: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return run(base, dtype, None)


@functools.cache
def with_sam(base: str, dtype: torch.dtype) -> dict[str, Tensor]:
    return run(base, dtype, lambda m, o: steppe.SAM(m, o))


@WITH
@pytest.mark.parametrize("case", IS_BASE)
def test_is_the_base(case: str, base: str, dtype: torch.dtype) -> None:
    assert same(run(base, dtype, IS_BASE[case]), base_alone(base, dtype))


@WITH
@pytest.mark.parametrize("case", IS_SAM)
def test_is_sam(case: str, base: str, dtype: torch.dtype) -> None:
    # With a slice of the whole batch, running statistics are those of the one pass that is not a look: compare weights.
    ours, sam = run(base, dtype, IS_SAM[case]), with_sam(base, dtype)
    if case == "all samples":
        ours, sam = ({k: v for k, v in x.items() if "running" not in k} for x in (ours, sam))
    assert same(ours, sam)


@WITH
def test_sam_is_not_the_base(base: str, dtype: torch.dtype) -> None:
    assert not same(with_sam(base, dtype), base_alone(base, dtype))


def test_look_sam_with_no_push_is_the_base_between_its_refreshes() -> None:
    model = net()
    optimizer = BASES["sgd"](model)
    sharp = steppe.LookSAM(model, optimizer, alpha=0.0, k=100)
    before = net()
    before.load_state_dict(model.state_dict())
    train(model, optimizer, sharp, 1)  # the refresh
    twin = net()
    twin.load_state_dict(model.state_dict())
    twin_optimizer = BASES["sgd"](twin)
    twin_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert same(train(model, optimizer, sharp, 5), train(twin, twin_optimizer, None, 5))
    assert not same(before.state_dict(), twin.state_dict())


def test_wsam_with_half_weight_is_sam_on_plain_sgd_to_rounding() -> None:
    results = []
    for make in (lambda m, o: steppe.WSAM(m, o, gamma=0.5), lambda m, o: steppe.SAM(m, o)):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        results.append(train(model, optimizer, make(model, optimizer)))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-12, atol=1e-12)
