"""Whose a class is, told by where it lies; and what of a model's state can be read."""

import importlib
import sys
from types import ModuleType

import pytest
import torch

from steppe._spaces import is_of_users
from steppe._state import Watch


@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("package", [True, False])
def test_what_pip_put_into_a_folder_of_any_name_is_not_the_users(tmp_path, monkeypatch, records, package):
    name = f"kept_{records}_{package}".lower()
    file = tmp_path / name / "__init__.py" if package else tmp_path / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("class Bank:\n    pass\n", encoding="utf-8")
    if records:
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert is_of_users(importlib.import_module(name).Bank) == (not records)


def test_torch_is_torch_wherever_it_was_built(monkeypatch):
    module = ModuleType("torch.distributed.kept")
    module.__file__ = "/home/me/pytorch/torch/distributed/kept.py"
    monkeypatch.setattr(torch, "__file__", "/home/me/pytorch/torch/__init__.py")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert not is_of_users(type("FSDPState", (), {"__module__": module.__name__}))


def test_a_tensor_whose_storage_was_set_free_is_not_read():
    """As FSDP's between two passes: a copy of it would end the process."""
    layer = torch.nn.BatchNorm1d(3)
    layer.running_mean.untyped_storage().resize_(0)
    state = Watch(lambda: [layer], lambda: list(layer.parameters())).start()
    assert [name for _, _, name, _ in state._cut.chosen] == ["running_var", "num_batches_tracked"]
