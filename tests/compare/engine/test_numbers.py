"""A study of numbers: lower is better in the choice, in early stopping and in the record."""

import pytest
import torch
from torch import nn

from steppe._command.averages import latest_steps
from steppe.compare import Split, Task
from steppe.compare.engine import run
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve


def task(seed: int, **more) -> Task:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(90, 3, generator=rng)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 * torch.randn(90, generator=rng)
    parts = [Split(x[i : i + 30], y[i : i + 30]) for i in (0, 30, 60)]
    recipe = {"model": "mlp", "epochs": 12, "batch_size": 10, "lr": 0.05, "weight_decay": 0.0, "eval_every": 1}
    return Task("line", *parts, recipe=recipe, loss="mse", **more)


def by_r2(seed: int) -> Task:
    return task(seed, metrics=("mse", "r2"))


def spec(**flags):
    return resolve({"task": "tests.compare.engine.test_numbers:task", "grow": 0, **flags})


@pytest.fixture(scope="module")
def record() -> dict:
    return run.train(spec(), Run("sam", 0.05, 0))


def test_the_record_names_its_metrics(record):
    assert record["metric"] == {"name": "mse", "title": "MSE", "higher": False, "percent": False}
    assert {f"{part}_{name}" for part in ("val", "test") for name in ("mse", "mae", "r2")} <= record.keys()
    assert set(record["curve"]) == {"epoch", "train_loss", "val_mse", "test_mse", "surrogate_gap"}
    assert record["test_r2"] > 0.5


def test_early_stopping_takes_the_lowest_error(record):
    curve = record["curve"]
    at = curve["val_mse"].index(min(curve["val_mse"]))
    assert record["early"]["epoch"] == curve["epoch"][at]
    assert record["early"]["val_mse"] == min(curve["val_mse"])
    assert record["early"]["test_mse"] == pytest.approx(curve["test_mse"][at])


@pytest.mark.parametrize(("metric", "best"), [("mse", 0.1), ("r2", 0.2)])
def test_the_choice_of_rho_heeds_the_direction(metric, best):
    """The radius with the lower error is chosen, and the one with the higher R²; a run without a number never."""
    plan = Plan(spec(methods=["sam"], rho=[0.1, 0.2, 0.3], tune_seeds=[0], metric=metric), "hash")
    (choice,) = plan.choices
    base = plan.best_base({})
    judge = {"name": metric, "title": metric, "higher": metric == "r2", "percent": False}
    values = dict(zip([0.1, 0.2, 0.3], [0.5, 0.7, None], strict=True))
    tries = plan.tune_runs(choice, base)
    records = {plan.id(each): {f"val_{metric}": values[each.value], "metric": judge} for each in tries}
    assert plan.best(choice, records).value == best


def test_another_metric_may_judge():
    record = run.train(spec(metric="r2"), Run("base", None, 0))
    assert record["metric"]["name"] == "r2" and "val_r2" in record["curve"]
    assert spec(metric="r2").hash() != spec().hash()


def test_sharpness_is_of_the_tasks_own_loss(record):
    torch.manual_seed(0)
    made = run.make_trainer(spec(), task(0), Run("base", None, 0), 10)
    x, y = task(0).train.x, task(0).train.y
    assert torch.allclose(made.loss_of((x, y)), nn.functional.mse_loss(made.model(x).squeeze(1), y))
    assert record["sharpness"]["value"] > 0


def test_a_method_that_chooses_examples_has_a_loss_for_each():
    assert run.train(spec(epochs=2), Run("esam", 0.05, 0))["ascended_share"] == 1.0


def test_averages_leave_positions_and_masks_as_they_are():
    """torch's exponential average of whole numbers is rounded down: of 512 positions 147 were others."""
    model = torch.nn.Linear(2, 2)
    model.register_buffer("positions", torch.arange(512))
    model.register_buffer("mask", torch.ones(4, 4, dtype=torch.bool).tril())
    settings = resolve({"task": "tests.compare.tiny:task"})
    for average in (run.exponential(settings, model, 100), run._latest(settings, model)):
        for _ in range(20):
            average.update_parameters(model)
        assert torch.equal(average.module.positions, model.positions) and torch.equal(average.module.mask, model.mask)


def test_lawa_is_the_mean_of_the_weights_after_the_latest_epochs():
    settings = spec(epochs=10)
    record = run.train(settings, Run("base", None, 0))
    made, data = run.make_trainer(settings, task(0), Run("base", None, 0), 30), task(0)
    kept = []
    for _, epoch in zip(range(10), run.batches(data, 10, 0), strict=False):
        for batch in epoch:
            made.step(batch)
        kept.append({name: value.detach().clone() for name, value in made.model.state_dict().items()})
    made.model.load_state_dict({name: sum(each[name] for each in kept[-5:]) / 5 for name in kept[0]})
    found = nn.functional.mse_loss(made.model(data.test.x).squeeze(1), data.test.y).detach()
    assert record["lawa"]["test_mse"] == pytest.approx(float(found), rel=1e-5)
    assert record["lawa"]["test_mse"] != pytest.approx(record["test_mse"], rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "per_epoch", "taken"),
    [(30, 3, [30, 27, 24, 21, 18]), (30, 30, [30, 27, 24, 21, 18]), (3, 1, [3, 2, 1]), (60, 2, [60, 58, 56, 54, 52])],
)
def test_where_lawa_takes_the_weights(steps, per_epoch, taken):
    assert latest_steps(steps, per_epoch) == taken


def test_the_averaged_weights_are_an_exponential_average_over_a_tenth_of_the_steps():
    settings = spec(epochs=10)
    record = run.train(settings, Run("base", None, 0))
    made, data = run.make_trainer(settings, task(0), Run("base", None, 0), 30), task(0)
    epochs, mean = run.batches(data, 10, 0), None
    for batch in (batch for _, epoch in zip(range(10), epochs, strict=False) for batch in epoch):
        made.step(batch)
        now = {name: value.detach().clone() for name, value in made.model.state_dict().items()}
        mean = now if mean is None else {name: 2 / 3 * mean[name] + 1 / 3 * now[name] for name in now}  # 1 - 10 / 30
    made.model.load_state_dict(mean)
    found = nn.functional.mse_loss(made.model(data.test.x).squeeze(1), data.test.y).detach()
    assert record["averaged"]["test_mse"] == pytest.approx(float(found), rel=1e-5)
    assert record["averaged"]["test_mse"] != pytest.approx(record["test_mse"], rel=1e-4)
