"""A probe notes what a step computed; the training is the same with it, and between records nothing is done."""

import copy
import sys

import pytest
import torch
from tests import problems
from tests.bowl import RHO, G, H, W, bowl, bowl_loss
from torch.utils._python_dispatch import TorchDispatchMode

import steppe

METHODS = {
    "sam": lambda m, o: steppe.SAM(m, o, rho=0.1),
    "asam": lambda m, o: steppe.ASAM(m, o, rho=0.5),
    "few": lambda m, o: steppe.SAM(m, o, rho=0.1, samples=2),
    "rst": lambda m, o: steppe.RST(m, o, rho=0.1, p=0.5),
    "look": lambda m, o: steppe.LookSAM(m, o, rho=0.1, k=3),
    "gsam": lambda m, o: steppe.GSAM(m, o, rho=0.1, alpha=0.2),
    "wsam": lambda m, o: steppe.WSAM(m, o, rho=0.1),
    "fsam": lambda m, o: steppe.FSAM(m, o, rho=0.1),
    "msam": lambda m, o: steppe.MSAM(m, o, rho=0.1),
    "esam": lambda m, o: steppe.ESAM(m, o, rho=0.1),
}


def trained(method, probing, **options):
    model = problems.net()
    optimizer = problems.BASES["sgd"](model)
    sharp = METHODS[method](model, optimizer)
    loss_of = (problems.losses_of if method == "esam" else problems.loss_of)(model)
    probe = steppe.Probe(sharp, **options) if probing else None
    torch.manual_seed(7)
    losses = []
    for batch in problems.batches(6):
        if probe is None:
            losses.append(sharp.backward(loss_of, batch))
        else:
            with probe:
                losses.append(sharp.backward(loss_of, batch))
        optimizer.step()
        optimizer.zero_grad()
    found = problems.everything(model) | {"losses": torch.stack(losses), "draw": torch.randn(1)}
    return found, probe and probe.records


@pytest.mark.parametrize("method", METHODS)
def test_the_training_is_the_same(method):
    plain, _ = trained(method, False)
    probed, records = trained(method, True, every=1)
    assert problems.same(plain, probed)
    assert records and all("perturbation_norm" in record for record in records)
    assert all(("cosine" in record) == (method not in ("few", "msam", "esam")) for record in records)


def test_what_it_notes_on_a_quadratic():
    model, optimizer = bowl()
    sharp = steppe.SAM(model, optimizer, rho=RHO)
    loss = bowl_loss(model)
    probe = steppe.Probe(sharp, every=1)
    with probe:
        sharp.backward(loss)
    eps = RHO * G / G.norm()
    there = H @ (W + eps)
    (record,) = probe.records
    assert record["step"] == 0
    assert record["surrogate_gap"] == pytest.approx(float(G @ eps + eps @ H @ eps / 2), rel=1e-10)
    assert record["perturbation_norm"] == pytest.approx(RHO, rel=1e-12)
    assert record["cosine"] == pytest.approx(float(G @ there / G.norm() / there.norm()), rel=1e-10)


def test_lambda_max_on_a_quadratic_leaves_everything_as_it_was():
    pytest.importorskip("hessian_eigenthings")
    model, optimizer = bowl()
    sharp = steppe.SAM(model, optimizer, rho=RHO)
    loss = bowl_loss(model)
    probe = steppe.Probe(sharp, every=1, loss_of=lambda _: loss(), batches=[None])
    with probe:
        sharp.backward(loss)
        before = model.w.grad.clone()
    assert probe.records[0]["lambda_max"] == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-9)
    assert torch.equal(model.w.grad, before) and torch.equal(model.w.detach(), W)


def test_phases_are_seen_too():
    model, optimizer = bowl()
    sharp, loss = steppe.SAM(model, optimizer, rho=RHO), bowl_loss(model)
    probe = steppe.Probe(sharp, every=1)
    with probe:
        loss().backward()
        assert sharp.ascend()
        loss().backward()
        sharp.restore()
    (record,) = probe.records
    assert record.keys() == {"step", "perturbation_norm", "cosine"}


def test_a_record_waits_for_a_step_that_ascends():
    _, records = trained("look", True, every=2)  # ascends on steps 0 and 3
    assert [record["step"] for record in records] == [0, 3]


def test_it_calls_what_writes():
    written = []
    trained("sam", True, every=3, to=lambda *call: written.append(call), prefix="sam/")
    assert [(name, step) for name, _, step in written] == [
        (f"sam/{name}", step) for step in (0, 3) for name in ("surrogate_gap", "perturbation_norm", "cosine")
    ]
    assert all(isinstance(value, float) for _, value, _ in written)


class Counted(TorchDispatchMode):
    """Counts torch's operations by name."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def called(run):
    """Which functions of steppe are entered, in order."""
    names = []

    def note(frame, event, _):
        if event == "call" and "steppe" in frame.f_code.co_filename:
            names.append(frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return names


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 100}], ids=["off", "between records"])
def test_where_nothing_is_recorded_nothing_is_done(options):
    model = problems.net()
    optimizer = problems.BASES["sgd"](model)
    sharp, loss_of = steppe.SAM(model, optimizer), problems.loss_of(model)
    probe, combine = steppe.Probe(sharp, **options), sharp.combine

    def watched(batch):
        with probe:
            assert sharp.combine is combine or sharp.step == 0
            sharp.backward(loss_of, batch)

    seen = []
    for number, batch in enumerate(problems.batches(8)):
        step = watched if number in (0, 6) else lambda batch: sharp.backward(loss_of, batch)
        with Counted() as counted:
            names = called(lambda: step(batch))
        seen.append((counted.calls, names))
        optimizer.step()
        optimizer.zero_grad()
    (with_it, entered), (without, plain) = seen[6:]
    assert with_it == without, "other operations"
    assert len(entered) == len(plain) + 2, "more than entering and leaving"
    assert len(probe.records) == bool(options["every"])


def test_a_step_that_raises_is_not_recorded_and_the_parts_are_back():
    model, optimizer = bowl()
    sharp, loss = steppe.SAM(model, optimizer), bowl_loss(model)
    combine, probe = sharp.combine, steppe.Probe(sharp, every=1)

    def fails():
        raise KeyError("enough")

    with pytest.raises(KeyError), probe:
        sharp.backward(fails)
    assert sharp.combine is combine and sharp.measure is False and probe.records == []
    with probe:
        sharp.backward(loss)
    assert len(probe.records) == 1


def test_a_state_saved_within_is_the_methods_own():
    model, optimizer = bowl()
    sharp = steppe.SAM(model, optimizer)
    probe = steppe.Probe(sharp, every=1)
    with probe:
        within = copy.deepcopy(sharp.state_dict())
        sharp.backward(bowl_loss(model))
    assert within == sharp.state_dict()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"every": -1}, "every=-1 was given"),
        ({"lanczos": 0}, "lanczos=0 was given"),
        ({"batches": [1]}, "one of loss_of and batches was given; expected both"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        steppe.Probe(steppe.SAM(*bowl()), **options)


def test_a_method_without_a_perturbation_is_refused():
    with pytest.raises(TypeError, match="an SGD was given; expected a SharpnessAware"):
        steppe.Probe(bowl()[1])
