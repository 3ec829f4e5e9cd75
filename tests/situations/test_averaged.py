"""Averages of the weights by torch's own AveragedModel: of the steps' weights, never of perturbed ones."""

from __future__ import annotations

import numpy as np
import pytest
from tests import reference
from tests.situations.standins import STEPS, backward, mechanisms, recipe, torch_base
from tests.trajectory_cases import SGD, Case
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

DECAY = 0.7
EACH = [*mechanisms(), Case("arwp", {"rho": 0.1, "eta": 1.0}, SGD)]


@pytest.mark.parametrize("case", EACH, ids=lambda case: case.method)
def test_averages_are_those_of_the_references_weights(case: Case) -> None:
    """Equal (SWA, WASAM) and exponential (EMA), updated after each step."""
    name, settings = case.base
    path = reference.trajectory(reference.METHODS[case.method], reference.MLP(), name, STEPS, settings, **case.settings)
    model = reference.MLP().module()
    optimizer = torch_base(case, model.parameters())
    sharp = recipe(case, model, optimizer)
    equal, ema = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for t in range(STEPS):
        backward(sharp, case, model, t)
        optimizer.step()
        optimizer.zero_grad()
        equal.update_parameters(model)
        ema.update_parameters(model)
    expected = path[0]
    for w in path[1:]:
        expected = {k: DECAY * expected[k] + (1 - DECAY) * w[k] for k in w}
    for k, p in model.named_parameters():
        assert abs(p.detach().numpy() - path[-1][k]).max() <= 1e-12
        mean = np.mean([w[k] for w in path], axis=0)
        assert abs(equal.module.get_parameter(k).detach().numpy() - mean).max() <= 1e-12
        assert abs(ema.module.get_parameter(k).detach().numpy() - expected[k]).max() <= 1e-12
