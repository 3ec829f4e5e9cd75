import copy

import pytest
import torch
from tests.compare import scripted, tiny
from torch import nn

from steppe._command.pool import Job, Pool
from steppe.compare.engine import measure, run
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import Spec, resolve

TIMES = ("seconds", "finished", "provenance")


def spec(**flags) -> Spec:
    return resolve({"task": "tests.compare.tiny:task", **flags})


def figures(record: dict) -> dict:
    """A record without what may differ from one time to the next."""
    return {key: value for key, value in record.items() if key not in TIMES}


@pytest.fixture(scope="module")
def record() -> dict:
    return run.train(spec(), Run("look_sam:k=2", 0.1, 0))


def test_a_run_is_the_same_whatever_ran_before_it_in_the_process(record):
    run.train(spec(), Run("rst", 0.2, 5))
    torch.rand(100)
    assert figures(run.train(spec(), Run("look_sam:k=2", 0.1, 0))) == figures(record)


def test_a_run_is_the_same_in_a_worker(record):
    with Pool(1) as pool:
        pool.submit(Job("other", run.train, (spec(), Run("base", None, 3))))
        pool.submit(Job("same", run.train, (spec(), Run("look_sam:k=2", 0.1, 0))))
        done = {event.key: event.value for event in pool.events() if event.kind == "done"}
    assert figures(done["same"]) == figures(record)


def test_seeds_differ(record):
    assert run.train(spec(), Run("look_sam:k=2", 0.1, 1))["curve"] != record["curve"]


def test_methods_of_one_seed_start_alike_and_see_the_same_batches():
    task = tiny.task(0)
    one, other = (run.make_trainer(spec(), task, Run(*each), 10) for each in (("sam", 0.1, 4), ("base", None, 4)))
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    first, second = (next(next(run.batches(task, 10, 4)))[1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("method", "passes"),
    [("base", 1.0), ("sam", 2.0), ("look_sam:k=5", 1.2), ("look_sam:k=1", 2.0), ("late_sam", 1.25)],
)
def test_passes_are_counted(method, passes):
    record = run.train(spec(epochs=5), Run(method, None if method == "base" else 0.1, 0))
    assert record["steps"] == 20
    assert record["passes_per_step"] == pytest.approx(passes, abs=1e-12)
    assert record["ascended_share"] == pytest.approx(passes - 1, abs=1e-12)


def test_a_method_that_chooses_examples_is_given_a_loss_for_each():
    """The forward that finds them counts a third, and of the 10 examples 5 are in the second pass."""
    record = run.train(spec(), Run("esam", 0.1, 0))
    assert record["passes_per_step"] == pytest.approx(1 + 1 / 3 + 0.5, abs=1e-12) and record["ascended_share"] == 1
    assert record["curve"]["train_loss"][-1] < record["curve"]["train_loss"][0]


def test_the_base_given_twice_the_epochs():
    record = run.train(spec(), Run("base", None, 0, "double"))
    assert (record["epochs"], record["steps"], record["variant"]) == (8, 32, "double")


def test_a_radius_of_nothing_is_the_base():
    sam, base = (run.train(spec(), Run(*each)) for each in (("sam", 0.0, 0), ("base", None, 0)))
    assert sam["curve"] == base["curve"] and sam["sharpness"] == base["sharpness"]


def test_the_record_has_everything_a_reader_needs(record):
    assert {"method", "label", "variant", "seed", "rho", "settings", "epochs", "steps"} <= record.keys()
    assert record["settings"] == {"k": 2} and record["label"] == "LookSAM (k=2)"
    assert set(record["early"]) == {"epoch", "val_accuracy", "test_accuracy", "test_nll"}
    assert record["curve"]["epoch"] == [1, 2, 3, 4]
    assert all(len(curve) == 4 for curve in record["curve"].values())
    assert record["val_accuracy"] == record["curve"]["val_accuracy"][-1]
    assert record["test_accuracy"] == record["curve"]["test_accuracy"][-1]
    assert record["provenance"]["torch"] == torch.__version__


def test_the_record_tells_how_many_examples_there_were(record):
    task = tiny.task(0)
    assert record["examples"] == {"train": len(task.train), "val": len(task.val), "test": len(task.test)}


def test_early_stopping_takes_the_first_best_checkpoint_and_its_test_accuracy(record):
    curve = record["curve"]
    at = curve["val_accuracy"].index(max(curve["val_accuracy"]))
    wanted = {key: curve[key][at] for key in ("epoch", "val_accuracy", "test_accuracy")}
    assert {key: record["early"][key] for key in wanted} == wanted


def test_early_stopping_goes_by_validation_takes_the_first_best_and_brings_its_weights_back():
    """At the script's third epoch: not where the test is best (4), not the second best validation (5), not the end."""
    settings = resolve({"task": "tests.compare.scripted:task"})
    record = run.train(settings, Run("base", None, 0))
    assert record["curve"]["val_accuracy"] == pytest.approx(scripted.RIGHT[scripted.VAL])
    assert record["curve"]["test_accuracy"] == pytest.approx(scripted.RIGHT[scripted.TEST])
    stopped = {"epoch": 3, "val_accuracy": 0.9, "test_accuracy": 0.5}
    assert {key: record["early"][key] for key in stopped} == pytest.approx(stopped)
    assert (record["val_accuracy"], record["test_accuracy"]) == pytest.approx((0.4, 0.2))


def test_early_stopping_measures_on_the_whole_test_set_with_the_weights_of_then():
    """The curve may look at a part of the test only; the figure at the end may not."""
    settings = resolve({"task": "tests.compare.scripted:task", "test_curve": 5})
    record = run.train(settings, Run("base", None, 0))
    stopped = {"epoch": 3, "val_accuracy": 0.9, "test_accuracy": 0.5}
    assert {key: record["early"][key] for key in stopped} == pytest.approx(stopped)


def test_the_order_of_batches_follows_the_seed():
    task = tiny.task(0)
    orders = [torch.cat([y for _, y in next(run.batches(task, 10, seed))]) for seed in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])


def test_inputs_may_be_a_dict_of_tensors():
    settings = resolve({"task": "tests.compare.tiny:wordy"})
    assert run.train(settings, Run("sam", 0.1, 0))["passes_per_step"] == 2.0


@pytest.mark.parametrize("name", ["adasam", "sam_adamw"])
def test_a_method_that_brings_its_own_base_gets_it(name):
    trainer = run.make_trainer(spec(), tiny.task(0), Run(name, 0.1, 0), 10)
    assert not isinstance(trainer.optimizer, torch.optim.SGD)


def test_adamw_is_a_base_too():
    assert isinstance(run.make_optimizer(spec(optimizer="adamw"), nn.Linear(2, 2), None), torch.optim.AdamW)


def test_a_run_of_the_base_is_looked_at_about_ten_times():
    assert [spec(epochs=epochs).every(6) for epochs in (5, 20, 39)] == [6, 12, 18]
    assert spec(epochs=20, eval_every=3).every(6) == 18
    assert spec(max_steps=50).every(6) == 5 and spec(max_steps=50, eval_every=7).every(6) == 7


def test_the_learning_rate_ends_at_nothing_on_a_cosine():
    trainer = run.make_trainer(spec(), tiny.task(0), Run("base", None, 0), 10)
    rates = []
    for batch, _ in zip(next(run.batches(tiny.task(0), 4, 0)), range(10), strict=False):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.step(batch)
    assert rates[0] == 0.05 and rates[5] == pytest.approx(0.025) and rates == sorted(rates, reverse=True)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 10), (0.3, 10), (0.95, 5), (0.99, 1)])
def test_after_the_last_step_the_learning_rate_stays(shape, warmup, steps):
    """A scheduler asks for it after every step, and the measurement of cost takes more steps than a run."""
    factor = run._schedule(spec(lr_schedule=shape, warmup=warmup), steps)
    later = [factor(t) for t in range(steps, 3 * steps + 3)]
    assert all(0 <= each <= 1 for each in later)
    assert shape == "constant" or warmup > 0.9 or later == pytest.approx([0.0] * len(later))


def test_sharpness_is_the_rise_of_the_loss_along_the_full_gradient():
    task = tiny.task(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    before = copy.deepcopy(model.state_dict())
    sharpness, along = measure.sharpness_and_slice(model, task.train, 0.05)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    loss = nn.functional.cross_entropy(model(task.train.x), task.train.y)
    gradient = torch.autograd.grad(loss, list(model.parameters()))
    norm = torch.sqrt(sum(g.square().sum() for g in gradient))
    with torch.no_grad():
        for weight, g in zip(model.parameters(), gradient, strict=True):
            weight += 0.05 * g / norm
        there = nn.functional.cross_entropy(model(task.train.x), task.train.y)
    assert sharpness["value"] == pytest.approx(float(there - loss.detach()), rel=1e-4)
    assert along["t"][10] == 0.0 and along["loss"][10] == pytest.approx(loss.item(), rel=1e-6)
    assert along["t"][0] == pytest.approx(-0.5) and along["t"][-1] == pytest.approx(0.5)


def test_measuring_leaves_mode_and_statistics_alone():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2))
    before = copy.deepcopy(model.state_dict())
    measure.accuracy(model, tiny.split(10, 0))
    measure.sharpness_and_slice(model, tiny.split(10, 0), 0.05)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
