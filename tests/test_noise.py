"""Noise on the scale of filters: whose it is, where it comes from, and the scope that leaves its length alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.loops import distributed as d
from tests.problems import BATCH, batches, close, grads, loss_of, make, net, same, weights
from torch import Tensor

import steppe
from steppe.noise import Noise

ARWP = {"rho": 0.1, "eta": 1.0, "decay": 0.9}


def drawn(params: dict[str, Tensor], step: int = 0, seed: int = 0, noise: Noise | None = None) -> dict[str, Tensor]:
    return (noise or Noise()).vector(params, None, {}, step, seed)


def test_a_filter_is_a_row_and_a_vector_is_one() -> None:
    """Among many draws the deviation of each entry is the length of its filter."""
    params = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]]), "b": torch.tensor([1.0, 2.0, 2.0])}
    params |= {"complex": torch.tensor([[3.0 + 4.0j]]), "pair": torch.tensor([0.0, 2.0j])}
    many = [drawn(params, step) for step in range(4000)]
    expected = {"w": [[5.0, 5.0], [0.0, 0.0], [2.0, 2.0]], "b": [3.0, 3.0, 3.0]}
    for name, lengths in (expected | {"complex": [[[5.0, 5.0]]], "pair": [[2.0, 2.0], [2.0, 2.0]]}).items():
        all_of_it = torch.stack([one[name] for one in many])
        torch.testing.assert_close(all_of_it.std(0), torch.tensor(lengths), rtol=0.05, atol=0)
        assert all_of_it.mean(0).abs().max() < 0.3


def test_the_noise_is_that_of_seed_step_and_name() -> None:
    params = {"a": torch.ones(4, 3), "b": torch.ones(4, 3)}
    one, torchs = drawn(params, 5, 1), torch.get_rng_state()
    assert same(one, drawn(params, 5, 1)) and same({"b": one["b"]}, drawn({"b": params["b"]}, 5, 1))
    others = [one["b"], drawn(params, 6, 1)["a"], drawn(params, 5, 2)["a"]]
    assert not any(torch.equal(one["a"], other) for other in others)
    assert torch.equal(torchs, torch.get_rng_state())


def test_the_length_of_a_filter_of_few_bits_is_summed_in_fp32() -> None:
    row = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)
    v, z = (drawn({"w": w})["w"] for w in (row, torch.eye(1, 4096, dtype=torch.bfloat16)))
    torch.testing.assert_close(v / z, torch.full_like(z, float(row.double().norm())), rtol=0.01, atol=0)


def test_micro_batches_of_a_step_see_one_noise() -> None:
    seen: list[dict[str, Tensor]] = []
    model = net(dropout=0)
    optimizer, sharp = make(model, ascent=steppe.Ascent(0.1, Noise(), scope="none"))

    def loss(batch: Any) -> Tensor:
        seen.append(weights({n: p.detach().clone() for n, p in model.named_parameters()}))
        return loss_of(model)(batch)

    for batch in batches(2):
        sharp.backward(loss, batch)
    assert same(*seen)
    optimizer.step()
    sharp.backward(loss, BATCH)
    moved = {n: seen[2][n] - p.detach() for n, p in model.named_parameters() if p.requires_grad}
    assert any(not torch.equal(moved[n], seen[0][n]) and moved[n].any() for n in moved)


def test_nothing_is_drawn_beside_the_schedule() -> None:
    model = net(dropout=0)
    ascent, schedule = steppe.Ascent(0.3, Noise(), scope="none"), steppe.Window(1)
    optimizer, sharp = make(model, ascent=ascent, schedule=schedule)
    plain = net(dropout=0)
    loss_of(plain)(BATCH).backward()
    sharp.backward(loss_of(model), BATCH)
    close(grads(model), grads(plain), rtol=0, atol=0)
    assert not sharp.last.ascended
    optimizer.step()
    sharp.backward(loss_of(model), BATCH)
    assert sharp.last.ascended


# The scope that takes no norm


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_gradient_without_a_norm_is_in_units_of_the_loss(scale: float) -> None:
    """eps = rho g, with a radius of its own for a group, whatever scale the loss carries."""
    model, twin = net(dropout=0), net(dropout=0)
    first = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([{"params": first[:2], "rho": 0.4}, {"params": first[2:]}], lr=0.1)
    sharp = steppe.SharpnessAware(model, optimizer, ascent=steppe.Ascent(0.2, scope="none"))
    sharp.backward(loss_of(model), BATCH, backward=lambda loss: (loss * scale).backward())
    loss_of(twin)(BATCH).backward()
    moved = [p for p in twin.parameters() if p.requires_grad]
    with torch.no_grad():
        for i, p in enumerate(moved):
            p.add_(0 if p.grad is None else (0.4 if i < 2 else 0.2) * p.grad)
    twin.zero_grad()
    loss_of(twin)(BATCH).backward()
    for p, q in zip(first, moved, strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad / scale, q.grad, rtol=1e-9, atol=1e-12)


# Several processes


def _ranks() -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    d.SETTINGS["arwp"] = ARWP
    ran = {kind: d.trajectory(kind, "arwp", dtype=torch.float64) for kind in ("DDP", "FSDP2")}
    mesh, whole = init_device_mesh("cpu", (2,)), torch.arange(15.0).reshape(5, 3)
    split = [drawn({"w": distribute_tensor(whole, mesh, [Shard(i)])})["w"] for i in (0, 1)]
    vector = drawn({"w": distribute_tensor(whole[:, 1].clone(), mesh, [Shard(0)])})["w"]
    return ran | {"split": [d.whole(t) for t in split], "vector": d.whole(vector)}


def test_every_rank_has_the_noise_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(d.SETTINGS, "arwp", ARWP)
    ranks, single = d.run(2, _ranks), d.trajectory("single", "arwp", dtype=torch.float64)
    whole = torch.arange(15.0).reshape(5, 3)
    for kind in ("DDP", "FSDP2"):
        d.assert_equal("arwp", [rank[kind] for rank in ranks], single, 1e-13, 2)
    for rank in ranks:
        for split in rank["split"]:
            torch.testing.assert_close(split, drawn({"w": whole})["w"], rtol=1e-6, atol=0)
        torch.testing.assert_close(rank["vector"], drawn({"w": whole[:, 1]})["w"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("settings", "named"), [({"eta": -1}, "eta"), ({"decay": 1.0}, "decay")])
def test_bad_settings_are_refused(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}=.* was given; expected"):
        Noise(**settings)
