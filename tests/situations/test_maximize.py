"""``maximize=True``: eps goes against the optimizer's progress, for every method and group by group."""

from __future__ import annotations

import copy

import pytest
import torch
from tests import reference
from tests.problems import same
from tests.situations.standins import MECHANISMS, STEPS, backward, gap, mechanisms, recipe, torch_base
from tests.test_trajectories import expected_path
from tests.test_trajectories import gap as path_gap
from tests.trajectory_cases import CASES, Case
from torch import nn
from torch.nn.functional import cross_entropy

import steppe
from steppe.methods import METHODS

KINDS = [c for c in CASES if c.base[0] != "amsgrad" and c.problem == "MLP"]
SOME = list({c.method: c for c in KINDS if c.method in MECHANISMS}.values())


@pytest.mark.parametrize("case", SOME, ids=str)
def test_climbing_minus_the_loss_is_descending_the_loss(case: Case) -> None:
    model = reference.MLP().module()
    optimizer = torch_base(case, model.parameters(), maximize=True)
    sharp = recipe(case, model, optimizer)
    path = []
    for t in range(STEPS):
        backward(sharp, case, model, t, sign=-1.0)
        optimizer.step()
        optimizer.zero_grad()
        path.append({k: p.detach().numpy().copy() for k, p in model.named_parameters()})
    assert path_gap(path, expected_path(case)[:STEPS]) <= 1e-10


def test_in_phases_with_accumulation_and_a_look_around() -> None:
    ends = []
    for maximize in (False, True):
        model = reference.MLP().module()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, maximize=maximize)
        sharp = steppe.SharpnessAware(model, optimizer, combine=steppe.Reuse(0.3), schedule=steppe.Every(3))
        sign = -1.0 if maximize else 1.0
        seen = []
        for t in range(6):

            def loss(t: int = t) -> torch.Tensor:
                return sign * reference.MLP.torch_loss(model, reference.MLP().torch_batch(t))

            loss().backward()
            if sharp.ascend():
                loss().backward()
                sharp.restore()
            sharp.backward(loss)
            with sharp.perturbed():
                seen.append(sign * loss().item())
            optimizer.step()
            optimizer.zero_grad()
        ends.append((model.state_dict(), torch.tensor(seen)))
    assert same(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("case", [c for c in mechanisms() if c.method != "esam"], ids=lambda c: c.method)
def test_one_group_climbs_and_the_other_descends(case: Case) -> None:
    """L1(w1) - L2(w2) with the second climbing is L1(w1) + L2(w2) with both descending, bit for bit."""
    ends = []
    for maximize in (False, True):
        model = nn.ModuleList([reference.MLP().module(), reference.MLP(1).module()])
        optimizer = torch.optim.SGD(
            [{"params": model[0].parameters()}, {"params": model[1].parameters(), "maximize": maximize}],
            lr=0.1, momentum=0.9,
        )  # fmt: skip
        sharp = METHODS[case.method].recipe(model, optimizer, **case.settings)
        for t in range(STEPS):
            x, y = reference.MLP().torch_batch(t)
            sign = -1.0 if maximize else 1.0
            sharp.backward(lambda s=sign, x=x, y=y, m=model: cross_entropy(m[0](x), y) + s * cross_entropy(m[1](x), y))
            optimizer.step()
            optimizer.zero_grad()
        ends.append(copy.deepcopy(model.state_dict()))
    assert same(*ends)


def test_the_samples_to_climb_on_cannot_be_chosen_where_groups_disagree() -> None:
    model = nn.ModuleList([reference.MLP().module(), reference.MLP(1).module()])
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "maximize": True}]
    with pytest.raises(ValueError, match=r"maximize=True in some groups.*expected"):
        steppe.ESAM(model, torch.optim.SGD(groups, lr=0.1))


def test_maximize_as_a_setting_of_the_optimizer_itself() -> None:
    """pytorch_optimizer keeps it as an attribute; a wrapper that climbs around an optimizer that climbs descends."""
    po = pytest.importorskip("pytorch_optimizer")
    ends = []
    for maximize, inner in ((False, False), (True, False), (False, True), (True, True)):
        model = reference.MLP().module()
        base = torch.optim.SGD(model.parameters(), lr=0.1, maximize=inner)
        optimizer = po.ScheduleFreeWrapper(base, maximize=maximize)
        optimizer.train()
        sharp = steppe.SAM(model, optimizer, rho=0.1)
        sign = -1.0 if maximize != inner else 1.0
        for t in range(6):
            batch = reference.MLP().torch_batch(t)
            sharp.backward(lambda b, m=model, s=sign: s * reference.MLP.torch_loss(m, b), batch)
            optimizer.step()
            optimizer.zero_grad()
        ends.append(model)
    assert all(gap(ends[0], other) <= 1e-12 for other in ends[1:])
