"""A recorded look is recorded anew where anything that Python reads is another than it was."""

import functools
import types

import pytest
import torch
from tests.problems import net
from tests.recording import data, taped
from torch import nn
from torch.nn import functional as F  # noqa: N812

import steppe
from steppe._recorded import EAGER

EXTRA = 0.0


@pytest.fixture
def tape(monkeypatch):
    return taped(monkeypatch)


class Scaled(nn.Module):
    """A network with plain attributes that a loop may change."""

    def __init__(self):
        super().__init__()
        self.body, self.drop, self.times = nn.Linear(5, 3), nn.Dropout(0.25), 1.0
        self.config = types.SimpleNamespace(power=1)
        self.double()

    def forward(self, x):
        return EXTRA + self.times * self.body(self.drop(x)) ** self.config.power


class Task:
    """A loss function's own object, with settings of its own."""

    factor = 1.0

    def __init__(self, model):
        self.model, self.settings, self.seen = model, {"alpha": 0.0}, 0

    def smoothed(self, output, target, alpha):
        return self.factor * F.cross_entropy(output, target, label_smoothing=alpha)

    def loss(self, batch):
        return self.smoothed(self.model(batch[0]), batch[1], self.settings["alpha"])


def change_attribute(task):
    task.model.times = 3.0


def change_dropout(task):
    task.model.drop.p = 0.75


def change_mode(task):
    task.model.drop.eval()


def change_submodule(task):
    task.model.drop = nn.Dropout(0.75)


def change_config(task):
    task.model.config.power = 2


def change_global(task, monkeypatch):
    monkeypatch.setitem(Scaled.forward.__globals__, "EXTRA", torch.arange(3.0, dtype=torch.float64))


def change_number(task):
    task.settings["alpha"] = 0.5


def change_setting_of_the_loss(task):
    task.factor = 2.0


def change_place(task):
    task.model.body.weight.data = 2 * task.model.body.weight.data


def freeze(task):
    task.model.body.bias.requires_grad_(False)


CHANGES = (
    change_attribute, change_dropout, change_mode, change_submodule, change_config, change_number,
    change_setting_of_the_loss, change_place, freeze, change_global,
)  # fmt: skip


def as_a_method(task):
    return task.loss


def as_a_lambda(task):
    alpha, factor = task.settings["alpha"], task.factor

    def smoothed(output, target):
        return factor * F.cross_entropy(output, target, label_smoothing=alpha)

    return lambda batch: smoothed(task.model(batch[0]), batch[1])


def as_a_partial(task):
    def loss(model, alpha, factor, batch):
        return factor * F.cross_entropy(model(batch[0]), batch[1], label_smoothing=alpha)

    return functools.partial(loss, task.model, task.settings["alpha"], task.factor)


@pytest.mark.parametrize("form", [as_a_method, as_a_lambda, as_a_partial])
@pytest.mark.parametrize("change", CHANGES)
def test_what_python_reads_is_never_that_of_an_earlier_recording(change, form, tape, monkeypatch):
    def run(cuda_graph):
        monkeypatch.setitem(Scaled.forward.__globals__, "EXTRA", 0.0)
        torch.manual_seed(0)
        task = Task(Scaled())
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.05)
        sharp = steppe.SAM(task.model, optimizer, samples=3, rho=0.5, cuda_graph=cuda_graph)
        for step, batch in enumerate(data(14)):
            if step == 7:
                change(task, *([monkeypatch] if change is change_global else []))
            task.seen += 1  # which the loss does not read
            sharp.backward(form(task), batch)
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([p.flatten() for p in task.model.parameters()])

    assert torch.equal(run(True), run(False))
    assert tape.recorded == 2 and tape.replayed == 14 - 2 * EAGER


def test_a_function_with_lines_of_steppe_s_around_it_is_told_apart_by_what_it_reads(tape):
    """A script's losses are counted, those of a compiled step run compiled: a recording sees the user's own."""
    from steppe._reach import Around

    class Counted(Around):
        def __call__(self, *arguments):
            return self.users(*arguments)

    model = net(dropout=0)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=3, cuda_graph=True)
    for step, batch in enumerate(data(10)):
        scale = 1.0 if step < 5 else 2.0
        sharp.backward(Counted(lambda b, scale=scale: scale * F.cross_entropy(model(b[0]), b[1])), batch)
        sharp.backward(functools.partial(Counted(lambda s, b: s * F.cross_entropy(model(b[0]), b[1])), scale), batch)
        sharp.optimizer.step()
        sharp.optimizer.zero_grad()
    assert tape.recorded == 4 and tape.replayed == 20 - 4 * EAGER
