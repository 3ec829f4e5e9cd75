"""Looks that are recorded and replayed: the numbers of the same look unrecorded, and when one is recorded anew.

Without a GPU a recording is one that runs the same function again on the recording's own batch, into the same memory;
what a real one does is in tests/loops/test_gpu.py.
"""

import copy
import functools
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from tests.problems import net
from tests.recording import data, taped
from torch import nn
from torch.nn import functional as F  # noqa: N812

import steppe
from steppe import _recorded, views
from steppe._command.choices import parse_all
from steppe._randomness import Randomness
from steppe._recorded import EAGER, KINDS, PATIENCE
from steppe.bench import measure
from steppe.bench.subject import Subject
from steppe.compare.engine import run as engine
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve
from steppe.compare.script.sharpen import Sharpen


@pytest.fixture
def tape(monkeypatch):
    return taped(monkeypatch)


def trained(cuda_graph, batches=None, model=None, function=None, recipe=steppe.SAM, samples=3, **settings):
    model = net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    look = steppe.Look(samples, cuda_graph=cuda_graph)
    sharp = recipe(model, optimizer, look=look, **settings)
    loss_of = function or (lambda batch: F.cross_entropy(model(batch[0]), batch[1]))
    losses = []
    for batch in batches or data():
        losses.append(sharp.backward(loss_of, batch))
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(losses), torch.cat([t.flatten().double() for t in model.state_dict().values()]), sharp


@pytest.mark.parametrize("recipe", [steppe.SAM, steppe.GSAM, steppe.FSAM, functools.partial(steppe.LookSAM, k=2)])
def test_the_numbers_are_those_of_the_look_unrecorded(recipe, tape):
    """Batch norm's statistics and dropout's masks too."""
    losses, weights, _ = trained(True, recipe=recipe)
    assert tape.recorded == 1 and tape.replayed >= 3
    same_losses, same_weights, _ = trained(False, recipe=recipe)
    assert torch.equal(losses, same_losses) and torch.equal(weights, same_weights)


class Reading(nn.Module):
    """A network whose forward reads what the one before has written."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 3)
        self.register_buffer("mean", torch.ones(5))
        self.double()

    def forward(self, x):
        self.mean.mul_(0.5).add_(x.detach().mean(0))
        return self.body(x - self.mean)


def test_a_state_that_a_forward_reads_is_the_same_in_a_recording(tape):
    def run(cuda_graph):
        torch.manual_seed(0)
        return trained(cuda_graph, model=Reading())

    assert torch.equal(run(True)[0], run(False)[0]) and tape.recorded == 1


def test_a_last_batch_of_another_size_is_a_kind_of_its_own(tape):
    batches = data(20)
    for at in (4, 9, 14, 19):
        batches[at] = tuple(part[:2] for part in batches[at])
    assert torch.equal(trained(True, batches)[1], trained(False, batches)[1])
    assert tape.recorded == 2 and tape.replayed == 20 - 2 * EAGER


def test_micro_batches_are_looked_at_one_by_one(tape):
    def run(cuda_graph):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        sharp = steppe.SAM(model, optimizer, look=steppe.Look(3, cuda_graph=cuda_graph))
        for first, second in zip(data()[::2], data()[1::2], strict=True):
            sharp.backward(
                lambda batch: F.cross_entropy(model(batch[0]), batch[1]) / 2,
                micro_batches=[first, second],
                backward=lambda loss: loss.backward(),
            )
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.testing.assert_close(run(True), run(False), rtol=1e-12, atol=1e-14)
    assert tape.recorded == 1 and tape.replayed == 2 * (6 - 2)


def test_what_a_replay_leaves_is_not_written_over_by_the_next(tape):
    model = nn.Linear(5, 3).double()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=2, cuda_graph=True)
    recorder = sharp._making.passes.recorder
    work = _recorded.Work.of(lambda batch: F.cross_entropy(model(batch[0]), batch[1]), data()[0], None, None)
    found = []
    for batch in data(EAGER + 2):
        work.batches = ((batch,),)
        loss = recorder.run(work)
        found.append((loss, loss.clone(), model.weight.grad, model.weight.grad.clone()))
        model.weight.grad = model.bias.grad = None
    assert tape.replayed == 2
    for loss, then, grad, grad_then in found:
        assert torch.equal(loss, then) and torch.equal(grad, grad_then)


def test_no_more_than_a_few_are_kept(tape):
    batches = [tuple(part[:size] for part in batch) for size in range(2, 8) for batch in data(EAGER + 1)]
    sharp = trained(True, batches, samples=8)[2]
    assert tape.recorded == 6 and len(sharp._making.passes.recorder._looks) == KINDS


def test_a_function_that_reads_something_new_each_time_is_told_of_once(tape):
    model = net(dropout=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sharp = steppe.SAM(model, optimizer, samples=2, cuda_graph=True)
    with pytest.warns(UserWarning, match="something that the loss function reads was another each time") as seen:
        for x, y in data(2 * PATIENCE + 5):
            sharp.backward(lambda batch, y=y: F.cross_entropy(model(batch), y[: len(batch)]), x)
            optimizer.step()
            optimizer.zero_grad()
    assert len(seen) == 1 and tape.recorded == 0


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_a_draw_of_the_host_s_is_refused(draw, tape, monkeypatch):
    monkeypatch.setattr(_recorded, "of_the_host", lambda: Randomness(()))
    model = net(dropout=0)
    with pytest.raises(ValueError, match="draws from a generator of the host"):
        trained(True, model=model, function=lambda b: (1 + draw()) * F.cross_entropy(model(b[0]), b[1]))


def test_a_loss_that_draws_nothing_is_recorded_with_an_eye_on_the_host_s_generators(tape, monkeypatch):
    monkeypatch.setattr(_recorded, "of_the_host", lambda: Randomness(()))
    random.random(), np.random.rand(), torch.rand(())
    trained(True, model=net(dropout=0))
    assert tape.recorded == 1


def test_a_loss_scale_is_refused(tape):
    model = net()
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=3, cuda_graph=True)
    with pytest.raises(ValueError, match="a loss scale"):
        sharp.backward(
            lambda b: F.cross_entropy(model(b[0]), b[1]), data()[0], backward=lambda loss: (1024 * loss).backward()
        )
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_recorded_is_said_with_the_reason(tape, monkeypatch):
    def fails(run, back):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(_recorded, "captured", fails)
    with pytest.raises(RuntimeError, match=r"recorded as a CUDA graph \(operation not permitted .* capturing\); expec"):
        trained(True)


def test_a_machine_without_a_device_refuses_before_anything_runs(monkeypatch):
    monkeypatch.setattr(views, "available", lambda: False)
    model = net()
    with pytest.raises(ValueError, match=r"cuda_graph=True.* sees no CUDA device; expected cuda_graph=False here"):
        steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), samples=3, cuda_graph=True)


def test_weights_on_the_cpu_are_refused(monkeypatch):
    monkeypatch.setattr(views, "available", lambda: True)
    with pytest.raises(ValueError, match=r"lie on cpu; expected all of them on a CUDA device"):
        trained(True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, o: steppe.Look(2, chosen="hardest", cuda_graph=True), "given with chosen='hardest'; expected it"),
        (lambda m, o: steppe.Look(2, autocast=torch.float16, cuda_graph=True), "given with autocast=torch.float16"),
        (lambda m, o: steppe.Look(2, cuda_graph=1), "cuda_graph=1 was given; expected True or False"),
        (lambda m, o: steppe.Look(cuda_graph=True), "which is a whole pass"),
        (lambda m, o: steppe.SAM(m, o, cuda_graph=True), "was given without samples"),
        (lambda m, o: steppe.RST(m, o, cuda_graph=True), "was given without samples"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(make, words):
    model = nn.Linear(2, 1)
    with pytest.raises((TypeError, ValueError), match=words):
        make(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_closure_without_a_batch_is_refused(tape):
    model = net()
    look = steppe.Look(autocast=torch.bfloat16, cuda_graph=True)
    sharp = steppe.SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), look=look)
    with pytest.raises(TypeError, match="cuda_graph=True"):
        sharp.backward(lambda: model(data()[0][0]).sum())


def test_copies_record_anew(tape):
    _, _, sharp = trained(True, model=nn.Linear(5, 3).double())
    for twin in (copy.deepcopy(sharp), pickle.loads(pickle.dumps(sharp))):
        assert not twin._making.passes.recorder._looks
    assert sharp._making.passes.recorder._looks


def test_the_recommended_look_is_recorded(tape):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    sharp = steppe.recommended(model, optimizer, cuda_graph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in data(6):
            sharp.backward(lambda b: F.cross_entropy(model(b[0]), b[1]), batch)
            optimizer.step()
            optimizer.zero_grad()
    assert sharp.look.cuda_graph and tape.replayed == 6 - EAGER


@pytest.mark.parametrize("row", [1, 4])
def test_a_benchmark_counts_the_passes_of_replays(row, tape):
    """Its times and its memory are of recorded looks: the few steps before are taken beforehand."""
    contenders = measure.makers(parse_all(["sam:samples=2,cuda_graph=true"]), "sgd")
    found = measure.measure(Subject("tests.bench.tiny:problem", 8), contenders, measure.Request(steps=row, row=row))
    assert [each["passes"] for each in found["methods"].values()] == [1.25]
    timed, watched = 1 + row * (2 + 1), 1 + measure.MEMORY_STEPS
    assert (tape.recorded, tape.replayed) == (2, timed + watched)


def test_a_comparison_counts_the_passes_of_replays(tape):
    """None of the recording's own."""
    spec = resolve({"task": "tests.compare.tiny:task"})
    found = [engine.train(spec, Run(f"sam:samples=3{more}", 0.1, 0)) for more in ("", ",cuda_graph=true")]
    assert tape.replayed == 16 - EAGER
    assert [each["passes_per_step"] for each in found] == [pytest.approx(1.3)] * 2
    assert found[0]["curve"] == found[1]["curve"]


@pytest.mark.parametrize("sizes", [(8,), (8, 4)])
def test_a_script_counts_the_passes_of_replays(sizes, tape):
    """By what each was given: a view of half the samples is half a pass, whichever piece it is of."""
    sharpen = Sharpen(lambda model, optimizer, steps: steppe.SAM(model, optimizer, look=steppe.Look(
        view=lambda batch: tuple(part[: len(part) // 2] for part in batch), cuda_graph=True
    )))  # fmt: skip
    model = net(dropout=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = sharpen(model, optimizer)
    for x, y in data(6):
        sharp.backward(
            lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
            micro_batches=[(x[:size], y[:size]) for size in sizes],
        )
        optimizer.step()
        optimizer.zero_grad()
    assert tape.recorded == len(sizes) and tape.replayed == len(sizes) * (6 - EAGER)
    assert sharpen.passes_per_step == pytest.approx(1.5)


def test_copies_tell_nobody_of_replays(tape):
    sharp = trained(True, model=nn.Linear(5, 3).double())[2]
    sharp.replays.append(print)
    assert copy.deepcopy(sharp).replays == pickle.loads(pickle.dumps(sharp)).replays == []
