"""While perturbed no part of the model is saved or loaded; hooks hang once, and copies and pickles are free of them."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from typing import Any

import pytest
import torch
from tests.problems import BATCH, loss_of, net
from torch import nn

import steppe


def perturbed(model: nn.Module) -> Any:
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), same_dropout=False)
    loss_of(model)(BATCH).backward()
    assert sharp.ascend()
    return sharp


def hooks(model: nn.Module) -> int:
    return sum(len(m._state_dict_pre_hooks) + len(m._load_state_dict_pre_hooks) for m in model.modules())


PARTS = ["", "first", "norm", "second", "last"]


@pytest.mark.parametrize("part", PARTS)
def test_no_part_is_saved_or_loaded_while_perturbed(part: str) -> None:
    model = net(dropout=0)
    module = model.get_submodule(part)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    sharp = perturbed(model)
    with pytest.raises(RuntimeError, match="cannot save the model while the weights are perturbed"):
        module.state_dict()
    with pytest.raises(RuntimeError, match="cannot load the model while the weights are perturbed"):
        module.load_state_dict(state)
    with pytest.raises(RuntimeError, match="cannot save the optimizer"):
        sharp.optimizer.state_dict()
    loss_of(model)(BATCH).backward()
    sharp.restore()
    module.load_state_dict(state)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items() if "running" not in k)


def test_a_module_that_holds_others_in_a_sequence() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.ReLU()), nn.Linear(4, 3)).double()
    sharp = perturbed(model)
    with pytest.raises(RuntimeError, match="cannot save the model"):
        model[0].state_dict()
    loss_of(model)(BATCH).backward()
    sharp.restore()


def test_hooks_hang_once_and_go_with_the_object() -> None:
    model = net()
    before = hooks(model)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert hooks(model) == before
    sharp.backward(loss_of(model), BATCH)
    hung = hooks(model)
    for _ in range(3):
        sharp.backward(loss_of(model), BATCH)
    assert hooks(model) == hung > before
    del sharp
    gc.collect()
    assert hooks(model) == before
    model.load_state_dict(model.state_dict())


def test_a_layer_that_came_later_is_refused_too() -> None:
    model = net(dropout=0)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), same_dropout=False)
    sharp.backward(loss_of(model), BATCH)
    model.last = nn.Linear(7, 3).double()
    sharp.optimizer.add_param_group({"params": list(model.last.parameters())})
    sharp.optimizer.zero_grad()
    loss_of(model)(BATCH).backward()
    sharp.ascend()
    with pytest.raises(RuntimeError, match="cannot save the model"):
        model.last.state_dict()
    loss_of(model)(BATCH).backward()
    sharp.restore()


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


def through_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch])
def test_a_copy_of_the_model_is_free(copied: Any) -> None:
    model = net(dropout=0)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), same_dropout=False)
    sharp.backward(loss_of(model), BATCH)
    twin = copied(copied(model))
    sharp.ascend()
    twin.load_state_dict(twin.state_dict())
    again = perturbed(twin)  # and has doors of its own
    with pytest.raises(RuntimeError, match="cannot save the model"):
        twin.first.state_dict()
    loss_of(twin)(BATCH).backward()
    again.restore()
    loss_of(model)(BATCH).backward()
    sharp.restore()


def test_a_model_saved_whole_names_nothing_of_steppe() -> None:
    model = nn.Sequential(nn.Linear(5, 3)).double()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    sharp.backward(loss_of(model), BATCH)
    assert b"steppe" not in pickle.dumps(model)


def test_a_copy_of_all_three_has_doors_of_its_own() -> None:
    model = net(dropout=0)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), same_dropout=False)
    sharp.backward(loss_of(model), BATCH)
    twin, other = copy.deepcopy((model, sharp))
    loss_of(twin)(BATCH).backward()
    other.ascend()
    with pytest.raises(RuntimeError, match="cannot save the model"):
        twin.last.state_dict()
    model.last.state_dict()
    loss_of(twin)(BATCH).backward()
    other.restore()
    twin.last.state_dict()
