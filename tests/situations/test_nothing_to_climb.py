"""Sparse gradients that are not perturbed are no reason to refuse; a closure over another model is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steppe
from steppe.methods import METHODS

RHO, TIGHT = 0.3, {"rtol": 1e-10, "atol": 1e-12}
ROWS = [name for name, row in METHODS.items() if not row.lora]


class Words(nn.Module):
    """A table with sparse gradients and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.table(x)).tanh())


def words() -> Words:
    torch.manual_seed(0)
    return Words().double()


X, Y = torch.tensor([1, 2, 2, 7]), torch.tensor([0, 1, 2, 0])


def loss_of(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(X), Y)


def by_hand(model: Words) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """SAM over the dense parameters: gradients of the last pass, and of the first, for all."""
    twin = copy.deepcopy(model)
    loss_of(twin).backward()
    first = {k: p.grad.to_dense().clone() for k, p in twin.named_parameters()}
    dense = [p for k, p in twin.named_parameters() if not k.startswith("table")]
    length = torch.cat([p.grad.flatten() for p in dense]).norm()
    with torch.no_grad():
        for p in dense:
            p += RHO * p.grad / length
    twin.zero_grad()
    loss_of(twin).backward()
    return {k: p.grad.to_dense() for k, p in twin.named_parameters()}, first


def test_a_sparse_table_with_an_optimizer_of_its_own() -> None:
    """SparseAdam for the table: its gradient is the last pass's alone, and sparse."""
    model = words()
    base = torch.optim.SGD([*model.body.parameters(), *model.head.parameters()], lr=0.1)
    table = torch.optim.SparseAdam(model.table.parameters())
    sharp = steppe.SAM(model, base, rho=RHO)
    for _ in range(3):
        wanted, _ = by_hand(model)
        sharp.backward(lambda: loss_of(model))
        assert model.table.weight.grad.is_sparse
        for k, p in model.named_parameters():
            torch.testing.assert_close(p.grad.to_dense(), wanted[k], **TIGHT)
        sharp.backward(lambda: loss_of(model))  # a second micro-batch is added
        for k, p in model.named_parameters():
            torch.testing.assert_close(p.grad.to_dense(), 2 * wanted[k], **TIGHT)
        base.step()
        table.step()
        model.zero_grad()


@pytest.mark.parametrize("name", [name for name in ROWS if name != "adasam"])  # AMSGrad takes no sparse gradients
def test_a_sparse_table_that_is_not_perturbed(name: str) -> None:
    """In the same optimizer, with perturb=False: every method trains it by the same rule as on a dense gradient."""
    results = []
    for sparse in (True, False):
        model = words()
        model.table.sparse = sparse
        groups: list[dict[str, Any]] = [
            {"params": [*model.body.parameters(), *model.head.parameters()]},
            {"params": model.table.parameters(), "perturb": False},
        ]
        row = METHODS[name]
        base = torch.optim.SGD(groups, lr=0.1)
        more: dict[str, Any] = {"total_steps": 6} if name in ("aesam", "late_sam") else {}
        more |= {"decay": 0.9} if name == "msam" else {}
        if name == "sam_on":
            model.body = nn.Sequential(model.body, nn.LayerNorm(4)).double()
            base.add_param_group({"params": model.body[1].parameters()})
        sharp = row.recipe(model, base, rho=RHO, **more)
        for t in range(6):
            kind = "none" if row.per_sample else "mean"
            sharp.backward(lambda b, k=kind, m=model: nn.functional.cross_entropy(m(b[0]), b[1], reduction=k),
                           (X.roll(t), Y))  # fmt: skip
            base.step()
            base.zero_grad()
        results.append([p.detach().clone() for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def test_one_that_is_perturbed_is_refused_still() -> None:
    model = words()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"table\.weight has a sparse gradient.*perturb=False"):
        sharp.backward(lambda: loss_of(model))


@pytest.mark.parametrize("name", [name for name in ROWS if name != "sl_sam"])  # there nothing may have been selected
def test_a_closure_over_a_copy_is_refused(name: str) -> None:
    """Nothing arrives at the model: no ascent with a perturbation of length 0."""
    model = words()
    model.table.sparse = False
    model.norm = nn.LayerNorm(3).double()
    another = copy.deepcopy(model)
    base = (METHODS[name].optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)))(model.parameters())
    more: dict[str, Any] = {"total_steps": 6} if name in ("aesam", "late_sam") else {}
    more |= {"start": 0} if name == "late_sam" else {"p": 1.0} if name in ("rst", "grst") else {}
    more |= {"lr_max": 1.0} if name == "tail_sam" else {}
    sharp = METHODS[name].recipe(model, base, rho=RHO, **more)
    kind = "none" if METHODS[name].per_sample else "mean"
    with pytest.raises(RuntimeError, match="no gradient arrived at .* copy"):
        for _ in range(3):
            sharp.backward(lambda b: nn.functional.cross_entropy(another(b[0]), b[1], reduction=kind), (X, Y))
    assert not sharp.last.ascended


def test_a_gradient_that_is_zero_is_none_of_it() -> None:
    """A flat place is not an error: no perturbation, and no NaN."""
    model = nn.Linear(2, 1).double()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    sharp.backward(lambda: (0 * model(torch.ones(1, 2, dtype=torch.float64))).sum())
    assert not model.weight.grad.any()
