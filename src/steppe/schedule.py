"""When to ascend: decisions made on the host, from (seed, step) and, for one schedule, the gradient's norm.

``t`` counts real optimizer steps done before this one: 0, 1, ... A schedule is asked once per optimizer step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from steppe._parts import Part, Value, check, check_count, check_value, value_at

Memory = dict[str, Any]
Statistic = Callable[[], Tensor]
Decision = tuple[bool, Memory]


def uniform(seed: int, t: int, *more: int) -> float:
    """A number in [0, 1) that depends on (seed, t, ...) alone: the same on every rank, platform and resume."""
    digest = hashlib.blake2b(":".join(map(str, (seed, t, *more))).encode(), digest_size=8).digest()
    return min(int.from_bytes(digest, "big") / 2**64, 1 - 2**-53)


class Schedule(Part):
    """Base of schedules; ``a & b`` ascends when both do."""

    @property
    def needs_gradient(self) -> bool:
        """Whether the decision must wait for the first pass."""
        return False

    def decide(self, t: int, seed: int, statistic: Statistic, memory: Memory) -> Decision:
        """Whether step ``t`` ascends, and the memory to keep when the step is really taken.

        Args:
            t: real optimizer steps done so far.
            seed: the object's seed.
            statistic: gives the squared global gradient norm; only schedules with ``needs_gradient`` may call it.
            memory: what the last real step left.
        """
        raise NotImplementedError

    def blank(self) -> Memory:
        """The memory that means the same as none: what a sharded checkpoint is loaded into."""
        return {}

    def __and__(self, other: Schedule) -> Schedule:
        """Ascend on the steps on which both schedules ascend."""
        return Both(self, other)


@dataclass(frozen=True)
class Always(Schedule):
    """Ascend at every step."""

    def decide(self, t: int, seed: int, statistic: Statistic, memory: Memory) -> Decision:
        """Always true."""
        return True, {}


@dataclass(frozen=True)
class Every(Schedule):
    """Ascend when t mod ``interval`` == 0: the first step always does."""

    interval: int

    def __post_init__(self) -> None:
        """Check the range."""
        check_count("interval", self.interval)

    def decide(self, t: int, seed: int, statistic: Statistic, memory: Memory) -> Decision:
        """True at multiples of the interval."""
        return t % self.interval == 0, {}


@dataclass(frozen=True)
class Bernoulli(Schedule):
    """Ascend with probability ``p`` (a number or a curve), drawn from (seed, t)."""

    p: Value

    def __post_init__(self) -> None:
        """Check the range."""
        check_value("p", self.p, 0.0, 1.0, "p is a probability")

    def decide(self, t: int, seed: int, statistic: Statistic, memory: Memory) -> Decision:
        """True when the draw of (seed, t) lies below p(t)."""
        return uniform(seed, t) < value_at("p", self.p, t, 0.0, 1.0), {}


@dataclass(frozen=True)
class Window(Schedule):
    """Ascend while ``start`` <= t < ``stop`` (steps); ``stop=None`` means to the end."""

    start: int = 0
    stop: int | None = None
    steps: ClassVar[tuple[str, ...]] = ("start", "stop")

    def __post_init__(self) -> None:
        """Check the order."""
        check_count("start", self.start, 0)
        if self.stop is not None:
            check_count("stop", self.stop, self.start)

    def decide(self, t: int, seed: int, statistic: Statistic, memory: Memory) -> Decision:
        """True inside the window."""
        return self.start <= t and (self.stop is None or t < self.stop), {}


@dataclass(frozen=True)
class AboveNorm(Schedule):
    """Ascend when the squared gradient norm is large for its own history (AE-SAM).

    With n = ||g||^2: mu <- decay mu + (1 - decay) n, sigma^2 <- decay sigma^2 + (1 - decay)(n - mu)^2, and the step
    ascends iff n >= mu + c_t sigma, c_t = (t/T) lambda_1 + (1 - t/T) lambda_2. Start: mu = 0, sigma^2 = e^-10.
    Reading the norm synchronises host and device once per step: that is the method's own price.
    """

    total_steps: int
    lambda_1: float = -1.0
    lambda_2: float = 1.0
    decay: float = 0.9
    steps: ClassVar[tuple[str, ...]] = ("total_steps",)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_count("total_steps", self.total_steps)
        check("lambda_1", self.lambda_1)
        check("lambda_2", self.lambda_2)
        check("decay", self.decay, 0.0, 1.0)

    @property
    def needs_gradient(self) -> bool:
        """It reads the gradient's norm."""
        return True

    def decide(self, t: int, seed: int, statistic: Statistic, memory: Memory) -> Decision:
        """True when the squared norm reaches mean + c_t deviations; a non-finite norm leaves the memory alone."""
        n = float(statistic())
        if not math.isfinite(n):
            return True, memory
        memory = self.blank() | memory
        mean = self.decay * memory["mean"] + (1 - self.decay) * n
        variance = self.decay * memory["variance"] + (1 - self.decay) * (n - mean) ** 2
        fraction = min(t / self.total_steps, 1.0)
        level = fraction * self.lambda_1 + (1 - fraction) * self.lambda_2
        return n >= mean + level * math.sqrt(variance), {"mean": mean, "variance": variance}

    def blank(self) -> Memory:
        """The paper's start."""
        return {"mean": 0.0, "variance": math.exp(-10)}


@dataclass(frozen=True)
class Both(Schedule):
    """Ascend when ``first`` and ``second`` both do; each keeps its own memory."""

    first: Schedule
    second: Schedule

    def __post_init__(self) -> None:
        """Check that both are schedules."""
        for part in (self.first, self.second):
            if not isinstance(part, Schedule):
                raise TypeError(f"a schedule was joined with {part!r}; expected another schedule, such as Every(2)")

    @property
    def needs_gradient(self) -> bool:
        """True when either schedule waits for the gradient."""
        return self.first.needs_gradient or self.second.needs_gradient

    def decide(self, t: int, seed: int, statistic: Statistic, memory: Memory) -> Decision:
        """Both decisions; neither is skipped, so that each sees every step."""
        yes_1, new_1 = self.first.decide(t, seed, statistic, memory.get("first", {}))
        yes_2, new_2 = self.second.decide(t, seed, statistic, memory.get("second", {}))
        return yes_1 and yes_2, {"first": new_1, "second": new_2} if new_1 or new_2 else {}

    def blank(self) -> Memory:
        """Both starts."""
        first, second = self.first.blank(), self.second.blank()
        return {"first": first, "second": second} if first or second else {}
