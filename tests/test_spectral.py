"""The steepest direction where matrices are measured by their largest singular value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.loops import distributed as d
from tests.problems import BATCH, close, grads, loss_of, make, net
from torch import Tensor

import steppe
from steppe.spectral import Spectral


def of(matrix: Tensor, iterations: int | None = None) -> Tensor:
    return Spectral(iterations)({"w": matrix}, {})[0]["w"]


@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (3, 2, 2, 2)])
def test_nothing_in_the_ball_climbs_more(shape: tuple[int, ...]) -> None:
    """<G, U V^T> is the sum of the singular values, and no other matrix of norm 1 reaches it."""
    source = torch.Generator().manual_seed(0)
    g = torch.randn(shape, generator=source, dtype=torch.float64)
    v, flat = of(g), g.flatten(1)
    singular = torch.linalg.svdvals(v.flatten(1))
    torch.testing.assert_close(singular, torch.ones_like(singular), rtol=1e-12, atol=0)
    torch.testing.assert_close((g * v).sum(), torch.linalg.svdvals(flat).sum(), rtol=1e-12, atol=0)
    for _ in range(20):
        other = torch.randn(flat.shape, generator=source, dtype=torch.float64)
        assert (flat * other / torch.linalg.matrix_norm(other, 2)).sum() < (g * v).sum()


def test_muons_iteration_is_near_it_and_the_same_for_the_transposed() -> None:
    g = torch.randn(6, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    near = torch.linalg.svdvals(of(g, 5))
    assert 0.65 < near.min() and near.max() < 1.25
    torch.testing.assert_close(of(g, 5), of(g.T, 5).T, rtol=1e-12, atol=1e-12)
    muon = torch.optim.Muon([w := torch.nn.Parameter(torch.zeros(6, 9))], lr=1.0, weight_decay=0.0, momentum=0.0)
    w.grad = g.float()
    muon.step()
    torch.testing.assert_close(-w.detach().double(), of(g, 5), rtol=0, atol=0.05)  # torch's is in bf16


@pytest.mark.parametrize("iterations", [None, 5])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 2, 2)])
def test_a_complex_matrix_is_one_matrix(shape: tuple[int, ...], iterations: int | None) -> None:
    """Its factor is that of the real matrix [[Re, -Im], [Im, Re]], and w + eps = w + rho U V^H, whatever the layout."""
    w = torch.nn.Parameter(torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(3)))
    b = torch.nn.Parameter(torch.ones(3, dtype=torch.complex128))
    model = torch.nn.ParameterDict({"w": w, "b": b})
    sharp = steppe.MuonSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.25, iterations=iterations)
    before, seen = w.detach().clone(), list[Tensor]()

    def loss() -> Tensor:
        seen.extend(p.detach().clone() for p in (w, b))
        return (w.real.sin() + 2 * w.imag.square()).sum() + b.abs().sum()

    gradient = torch.autograd.grad(loss(), w)[0].flatten(1)
    seen.clear()
    sharp.backward(loss)
    block = torch.cat([torch.cat([gradient.real, -gradient.imag], 1), torch.cat([gradient.imag, gradient.real], 1)])
    factor, (rows, columns) = of(block), gradient.shape
    wanted = torch.complex(factor[:rows, :columns], factor[rows:, :columns])
    moved = ((seen[2] - before) / 0.25).flatten(1)
    if iterations is None:
        torch.testing.assert_close(moved, wanted, rtol=1e-12, atol=1e-12)
    same_vectors = wanted.mH @ moved if rows > columns else wanted @ moved.mH  # U S U^H
    torch.testing.assert_close(same_vectors, same_vectors.mH.resolve_conj(), rtol=1e-10, atol=1e-10)
    assert 0.65 < torch.linalg.eigvalsh(same_vectors).min() and torch.linalg.eigvalsh(same_vectors).max() < 1.25
    torch.testing.assert_close(seen[3] - seen[1], torch.full_like(b, 0.25 / 3**0.5).detach(), rtol=1e-12, atol=0)
    assert torch.equal(w.detach(), before)


def test_what_has_no_direction_stays() -> None:
    for zero in (torch.zeros(3, 4), torch.zeros(5), torch.zeros(())):
        assert not of(zero).any() and not of(zero, 5).any()
    low = torch.outer(torch.arange(1.0, 4.0), torch.ones(5))
    torch.testing.assert_close(torch.linalg.svdvals(of(low)), torch.tensor([1.0, 0.0, 0.0]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of(torch.tensor([3.0, 4.0])), torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("iterations", [None, 5])
def test_few_bits(dtype: torch.dtype, iterations: int | None, size: float) -> None:
    g = torch.randn(8, 8, generator=torch.Generator().manual_seed(2)) * size
    got = of(g.to(dtype), iterations)
    assert got.dtype is dtype and (got.float() - of(g.to(dtype).float(), iterations)).abs().max() < 0.05
    assert of(g[0].to(dtype), iterations).isfinite().all()


@pytest.mark.parametrize("iterations", [None, 5])
def test_an_overflow_is_left_for_the_scaler(iterations: int | None) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp, scaler = steppe.MuonSAM(model, optimizer, iterations=iterations), torch.amp.GradScaler("cpu")
    before = model.weight.detach().clone()
    infinite = torch.full((4, 3), torch.inf)
    sharp.backward(lambda: model(infinite).sum(), backward=lambda loss: scaler.scale(loss).backward())
    scaler.step(optimizer)
    scaler.update()
    assert sharp.step == 0 and scaler.get_scale() == 2.0**15 and torch.equal(model.weight, before)


def test_a_scale_of_the_loss_changes_nothing_and_none_is_asked_for() -> None:
    one, other = net(dropout=0), net(dropout=0)
    ascent = steppe.Ascent(0.02, Spectral(), scope="none")
    assert not ascent.reads_scale
    for model, scale in ((one, 1.0), (other, 1024.0)):
        _, sharp = make(model, ascent=ascent)
        sharp.backward(loss_of(model), BATCH, backward=lambda loss, s=scale: (loss * s).backward())
    close(grads(one), {n: None if g is None else g / 1024 for n, g in grads(other).items()})


def test_a_budget_of_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a direction made of this step's gradient"):
        steppe.Ascent(steppe.curves.LossBudget(0.1, 1.0), Spectral(), scope="none")


def _ranks() -> dict[str, Any]:
    d.SETTINGS["muon_sam"] = {"rho": 0.05}
    return {kind: d.trajectory(kind, "muon_sam", dtype=torch.float64) for kind in ("DDP", "FSDP2")}


def test_every_rank_has_the_direction_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(d.SETTINGS, "muon_sam", {"rho": 0.05})
    ranks, single = d.run(2, _ranks), d.trajectory("single", "muon_sam", dtype=torch.float64)
    for kind in ("DDP", "FSDP2"):
        d.assert_equal("muon_sam", [rank[kind] for rank in ranks], single, 1e-12, 2)


def test_with_muon_and_adamw_it_trains() -> None:
    """The largest singular value of every matrix's perturbation is about rho, at the same time for both optimizers."""
    model = net(dropout=0)
    matrices = [p for p in model.parameters() if p.ndim == 2 and p.requires_grad]
    rest = [p for p in model.parameters() if p.ndim != 2 and p.requires_grad]
    sharp = steppe.MuonSAM(model, [torch.optim.Muon(matrices), torch.optim.AdamW(rest)], rho=0.1, iterations=None)
    before, seen = [p.detach().clone() for p in matrices], list[list[Tensor]]()

    def loss(batch: Any) -> Tensor:
        seen.append([p.detach().clone() for p in matrices])
        return loss_of(model)(batch)

    sharp.backward(loss, BATCH)
    largest = [float(torch.linalg.matrix_norm(b - a, 2)) for a, b in zip(before, seen[1], strict=True)]
    assert largest == pytest.approx([0.1] * 4, rel=1e-9)
