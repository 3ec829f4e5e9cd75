"""How long a study will take, told before its first run."""

from __future__ import annotations

from typing import Any

import pytest

from steppe.compare.engine import foretold, run
from steppe.compare.engine.plan import Plan
from steppe.compare.engine.spec import resolve


def plan(**flags: Any) -> Plan:
    given = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 3, "rho": [0.1, 0.2], "jobs": 1, **flags}
    return Plan(resolve(given), "hash")


class Clock:
    """A pass through the model in training takes a second, what is judged by an example a tenth."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.judging = 0.0, False
        monkeypatch.setattr(foretold, "taken", self.taken)
        monkeypatch.setattr(run, "make_trainer", self.counted(run.make_trainer))

    def counted(self, make: Any) -> Any:
        def made(*arguments: Any, **more: Any) -> Any:
            trainer = make(*arguments, **more)
            trainer.model.register_forward_pre_hook(self.passed)
            return trainer

        return made

    def passed(self, model: Any, inputs: Any) -> None:
        self.now += len(inputs[0]) / 10  # of a batch of ten

    def taken(self, device: str, work: Any) -> tuple[float, float]:
        before = self.now
        work()
        return self.now - before or 3.0, 0.0  # thirty examples, where no trainer is at work


@pytest.mark.parametrize(
    ("method", "passes"), [("sam", 2.0), ("recommended:samples=2", 1.2), ("look_sam:k=5", 1.2), ("rst:p=0.0", 1.0)]
)
def test_a_run_counts_with_its_steps_and_passes(method: str, passes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    monkeypatch.setattr(foretold, "BUDGET", 1e6)
    steps, judged = 16, 4 * (30 + 50) + 3 * 30 + 4 * 50 + 26 * 40
    bases, runs = 3 * (1 + 2 + 1 / 2) * steps, (4 + 1) * steps * passes
    looks = 0.1 * (judged * (3 + 3 + 3 + 5) + 4 * (30 + 50) * 3 - 2 * (30 + 50) * 3)
    assert foretold.seconds(plan(methods=[method])) == pytest.approx(bases + runs + looks, rel=0.005)


def test_two_at_a_time_take_half(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    assert foretold.seconds(plan(jobs=2)) == pytest.approx(foretold.seconds(plan()) / 2)


def test_slow_steps_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    foretold.seconds(plan())
    assert clock.now == (foretold.WARM_UP + foretold.FEWEST) * (1 + 1 + 1 + 2)


def test_what_fails_is_left_to_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert foretold.seconds(plan(model="tests.compare.tiny:broken_model")) == 0.0
