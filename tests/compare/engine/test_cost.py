import time

import pytest
import torch
from tests._command.clock import counting_modules
from tests.compare import tiny

import steppe
from steppe._command import meter
from steppe.compare.engine import cost, run
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve


@pytest.fixture(scope="module")
def measured() -> dict:
    spec = resolve({"task": "tests.compare.tiny:task", "epochs": 10})
    runs = [Run("sam", 0.1, 0), Run("look_sam:k=5", 0.1, 0), Run("late_sam", 0.1, 0)]
    with counting_modules(), pytest.MonkeyPatch.context() as patch:
        for name, count in (("BLOCK", 10), ("LEAST", 20), ("MOST", 20)):  # the schedule's beginning and its end
            patch.setattr(cost, name, count)
        return cost.measure(spec, runs, {"sam": 1.0, "look_sam:k=5": 0.2, "late_sam": 0.25})


def test_time_is_relative_to_the_base_and_weighted_by_the_steps_that_ascend(measured):
    found = {name: each["time_ratio"] for name, each in measured["methods"].items()}
    for name, passes in (("sam", 2.0), ("look_sam:k=5", 1.2), ("late_sam", 1.25)):
        assert found[name] == pytest.approx(dict.fromkeys(("low", "median", "high"), passes)), name
    assert measured["clock"] == "processor"
    assert measured["methods"]["sam"]["step_ms"] == pytest.approx(2 * measured["base"]["step_ms"])


def test_blocks_are_spread_over_the_schedule_and_warm_up_does_not_count(monkeypatch):
    """Of 400 steps, four blocks of 20 turns, the last of them at the end, where a method may begin to climb."""
    spec = resolve({"task": "tests.compare.tiny:task", "epochs": 100})
    seen, take_turn = [], cost.take_turn

    def noting(device, clocks, batch, keep=True):
        seen.append((clocks[1].step.__self__.sharp.step, keep))
        take_turn(device, clocks, batch, keep)

    monkeypatch.setattr(cost, "take_turn", noting)
    monkeypatch.setattr(cost, "_blocks", lambda turn: 4)
    monkeypatch.setattr(cost, "peak_memory", lambda *_: 1)
    found = cost.measure(spec, [Run("sam", 0.1, 0)], {"sam": 1.0})
    assert seen[:6] == [(step, False) for step in range(6)]
    assert [step for step, _ in seen[6::20]] == [6, 126, 253, 380] and all(keep for _, keep in seen[6:])
    assert len(seen) == 6 + 4 * 20 and found["turns"] == 80


def test_steps_that_were_never_seen_have_no_time():
    """Nor has a method that has them, but where they are too rare to tell."""
    clock = meter.Clock(lambda batch: None, lambda: False, True)
    clock.note((1.0, 1.0), (1.0, 1.0))
    found = {share: cost.of_method(Run("rst", 0.1, 0), clock, share) for share in (0.0, 0.04, 0.25)}
    assert [each["time_ratio"] is None for each in found.values()] == [False, False, True]
    assert found[0.25]["step_ms"] is None and found[0.0]["step_ms"] == 1000


def test_the_clock_is_the_wall_s_and_the_processor_s():
    wall, busy = meter.taken("cpu", lambda: time.sleep(0.05))
    assert wall >= 0.05 and 0 <= busy < wall, "asleep, the processor is another's"


@pytest.mark.parametrize(("device", "world", "clock", "ratio"), [
    ("cpu", 1, "processor", 3.0), ("cpu", 2, "wall", 10.0), ("cuda", 1, "wall", 10.0),
])  # fmt: skip
def test_what_else_a_busy_cpu_does_is_in_no_ratio(device, world, clock, ratio, monkeypatch):
    """A method whose steps wait: ten times the base's by the wall clock, three times in processor time."""
    monkeypatch.setattr(cost, "ranks", lambda: world)
    spec = resolve({"task": "tests.compare.tiny:task"}).model_copy(update={"device": device})
    waiting = meter.Clock(lambda batch: None, lambda: True, cost.by_processor(spec))
    waiting.note((20.0, 3.0), (2.0, 1.0))
    assert cost.clock_of(spec) == clock and waiting.fair[True] == [ratio]
    assert waiting.seconds[True] == [3.0 if clock == "processor" else 20.0]


def test_memory_is_relative_to_the_base(measured):
    sam, look = (measured["methods"][name]["memory_ratio"] for name in ("sam", "look_sam:k=5"))
    assert 1.0 < sam < look < 3.0


def test_peak_memory_counts_every_tensor_that_is_alive():
    def work() -> None:
        kept = [torch.zeros(1000) for _ in range(5)]
        del kept[2:]
        kept.append(torch.zeros(500))

    assert meter._peak_on_cpu(work) == 20_000


def test_the_schedule_is_brought_forward_without_moving_a_weight():
    task = tiny.task(0)
    spec = resolve({"task": "tests.compare.tiny:task"})
    trainer = run.make_trainer(spec, task, Run("rst", 0.1, 0), 100)
    before = [weight.clone() for weight in trainer.model.parameters()]
    cost.forward(trainer, 37)
    assert trainer.sharp.step == 37
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_bar_does_not_complain_of_the_steps_that_only_count(recwarn):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(2, 3, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bar = steppe.BAR(model, optimizer, pairs={"0.weight": "1.weight"}, total_steps=50)
    cost.forward(run.Trainer(model, optimizer, None, bar, None), 37)
    assert bar.step == 37 and not recwarn.list
