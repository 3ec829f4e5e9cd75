import pytest
import torch

import steppe
from steppe._command.choices import parse
from steppe.bench import contender
from steppe.bench.contender import Loss, base, ours
from steppe.bench.subject import Subject

SUBJECT = Subject("tests.bench.tiny:problem", 8)


def method(text):
    problem = SUBJECT.make()
    return problem, ours(problem, parse(text), "sgd")


def weights(problem):
    return torch.cat([p.detach().flatten() for p in problem.model.parameters()])


def test_the_loss_counts_the_share_of_the_batch_that_goes_through():
    problem = SUBJECT.make()
    loss = Loss(problem)
    loss(problem.batch)
    loss({key: value[:2] if key != "name" else value for key, value in problem.batch.items()})
    assert loss.passes() == 1.25
    assert loss.passes() == 0


def test_the_base_takes_one_pass_and_moves_the_weights():
    problem = SUBJECT.make()
    before, one = weights(problem), base(problem, "sgd")
    one.take(problem.batch)
    assert one.passes == {False: 1.0} and one.kinds == (False,)
    assert not torch.equal(weights(problem), before)
    assert all(p.grad is None for p in problem.model.parameters())


@pytest.mark.parametrize(
    ("text", "share", "kinds", "passes"),
    [
        ("sam", 1.0, (True,), {True: 2.0}),
        ("look_sam:k=5", 0.2, (True, False), {True: 2.0, False: 1.0}),
        ("late_sam", 0.25, (True, False), {True: 2.0, False: 1.0}),
        ("sam:samples=2", 1.0, (True,), {True: 1.25}),
    ],
)
def test_shares_and_passes_of_methods(text, share, kinds, passes):
    problem, one = method(text)
    assert (one.share, one.kinds) == (share, kinds)
    for kind in kinds:
        one.place(kind)
        one.take(problem.batch)
    assert one.passes == passes


@pytest.mark.parametrize("text", ["nbar", "flat_lora", "bi_lora:rank=1"])
def test_methods_of_lora_take_the_one_pass_of_the_base(text):
    problem = Subject("tests.bench.tiny:lora", 8).make()
    one = ours(problem, parse(text), "sgd")
    assert (one.share, one.kinds) == (0.0, (False,))
    one.place(False)
    one.take(problem.batch)
    assert one.passes == {False: 1.0}


def test_random_shares_are_near_their_chance_and_placed_exactly():
    problem, one = method("rst:p=0.3")
    assert one.share == pytest.approx(0.3, abs=0.05)
    for wanted in (True, True, False, True, False, False):
        one.place(wanted)
        one.take(problem.batch)
        assert one.ascended() is wanted


def test_placing_moves_no_weight_and_comes_round():
    problem, one = method("late_sam")
    before = weights(problem)
    one.place(True)
    one.place(False)
    assert torch.equal(weights(problem), before)
    one.take(problem.batch)
    assert not one.ascended()


def test_it_goes_on_from_where_it_stands():
    model = SUBJECT.make().model
    sharp, places = steppe.LookSAM(model, torch.optim.SGD(model.parameters(), 0.1), k=5), []
    for step, wanted in ((7, False), (7, True), (999, True)):
        sharp.step = step
        contender._place(sharp, wanted)
        places.append(sharp.step)
    assert places == [7, 10, 0]


def test_a_schedule_that_asks_the_gradient_tells_its_share_only_by_its_steps():
    problem, one = method("aesam")
    assert one.share is None and one.kinds == (True, False)
    one.place(True)
    one.take(problem.batch)
    assert set(one.passes) == {one.ascended()}


def test_a_step_is_the_step_of_the_library():
    """What is timed trains as the loop of the README does."""
    problem, one = method("sam")
    other = SUBJECT.make()
    optimizer = contender.OPTIMIZERS["sgd"](other.model.parameters())
    import steppe

    sharp = steppe.SAM(other.model, optimizer, seed=0)
    for _ in range(3):
        one.take(problem.batch)
        sharp.backward(lambda: other.loss_of(other.model, other.batch))
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(weights(problem), weights(other))


def test_a_method_may_bring_its_own_optimizer():
    problem, one = method("sam_adamw")
    one.take(problem.batch)
    assert one.passes == {True: 2.0} and one.stated.startswith("1")


def test_steps_in_a_row_are_of_one_kind() -> None:
    problem, one = method("look_sam:k=3")
    kinds = []
    step = one.step
    one.step = lambda batch: (step(batch), kinds.append(one.ascended()))
    for wanted in (True, False):
        one.place(wanted)
        one.take(problem.batch, row=4)
    assert kinds == [True] * 4 + [False] * 4 and one.passes == {True: 2.0, False: 1.0}
