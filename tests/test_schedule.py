"""When to ascend: decisions by hand, draws from (seed, t) alone, and memory that is handed on and never changed."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steppe
from steppe.curves import Linear
from steppe.schedule import AboveNorm, Always, Bernoulli, Both, Every, Schedule, Window, uniform

# blake2b(f"{seed}:{t}", digest_size=8) as a big-endian integer over 2**64, frozen: a change breaks every resumed run.
FROZEN = {
    (0, 0): 0.8336885269740499,
    (0, 1): 0.9459165357046845,
    (0, 2): 0.8099321172140699,
    (1, 0): 0.32143644126114884,
    (7, 123): 0.22853997710415488,
    (42, 99999): 0.47764269746413074,
    (-3, 5): 0.024897108650759,
    (9223372036854775808, 2147483648): 0.763124930754737,
}


def no_statistic():
    raise AssertionError("this schedule may not look at the gradient")


def decisions(schedule, steps, seed=0, norms=None):
    memory, seen = {}, []
    for t in range(steps):
        statistic = no_statistic if norms is None else lambda t=t: torch.tensor(norms[t], dtype=torch.float64)
        yes, memory = schedule.decide(t, seed, statistic, memory)
        seen.append(yes)
    return seen


# --- draws --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "t"), FROZEN)
def test_uniform_is_frozen(seed, t):
    assert uniform(seed, t) == FROZEN[seed, t]


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_uniform_lies_in_the_unit_interval_and_repeats(seed, t):
    assert 0 <= uniform(seed, t) < 1
    assert uniform(seed, t) == uniform(seed, t)


def test_seeds_and_steps_do_not_run_into_each_other():
    draws = {uniform(seed, t) for seed in (0, 1, 11, 111, -1) for t in range(200)}
    assert len(draws) == 1000


def test_uniform_needs_no_generator_and_leaves_them_alone():
    torch.manual_seed(0), random.seed(0)
    before, python = torch.get_rng_state(), random.getstate()
    first = uniform(3, 4)
    torch.manual_seed(1)
    assert uniform(3, 4) == first
    torch.manual_seed(0)
    uniform(1, 1)
    assert torch.equal(before, torch.get_rng_state()) and python == random.getstate()


# --- decisions ----------------------------------------------------------------------------------------------


def test_always():
    assert decisions(Always(), 5) == [True] * 5


@given(st.integers(1, 50))
def test_every_counts_from_the_first_step(interval):
    assert [t for t, yes in enumerate(decisions(Every(interval), 120)) if yes] == list(range(0, 120, interval))


@given(st.integers(0, 30), st.one_of(st.none(), st.integers(0, 30)))
def test_window_holds_its_start_and_not_its_stop(start, length):
    stop = None if length is None else start + length
    expected = list(range(start, 70 if stop is None else stop))
    assert [t for t, yes in enumerate(decisions(Window(start, stop), 70)) if yes] == expected


@given(st.floats(0, 1), st.integers(0, 1000))
def test_bernoulli_compares_the_draw_with_p(p, seed):
    assert decisions(Bernoulli(p), 30, seed) == [uniform(seed, t) < p for t in range(30)]


@given(st.integers(0, 1000))
def test_bernoulli_at_its_ends(seed):
    assert not any(decisions(Bernoulli(0.0), 100, seed))
    assert all(decisions(Bernoulli(1.0), 100, seed))


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 100))
def test_a_larger_p_adds_steps_and_takes_none(a, b, seed):
    low, high = (decisions(Bernoulli(p), 50, seed) for p in sorted((a, b)))
    assert all(h or not w for w, h in zip(low, high, strict=True))


def test_bernoulli_reads_its_curve_at_each_step():
    curve = Linear(0.0, 1.0, 50)
    assert decisions(Bernoulli(curve), 60, 5) == [uniform(5, t) < curve(t) for t in range(60)]


def test_only_above_norm_waits_for_the_gradient():
    flags = [s.needs_gradient for s in (Always(), Every(2), Bernoulli(0.5), Window(1, 2), Every(2) & Window(1))]
    assert flags == [False] * 5
    assert AboveNorm(10).needs_gradient
    assert (Every(2) & AboveNorm(10)).needs_gradient and (AboveNorm(10) & Every(2)).needs_gradient


# --- AE-SAM's statistic -------------------------------------------------------------------------------------


def by_hand(norms, total, lambda_1=-1.0, lambda_2=1.0, decay=0.9):
    mean, variance, seen = 0.0, math.exp(-10), []
    for t, n in enumerate(norms):
        mean = decay * mean + (1 - decay) * n
        variance = decay * variance + (1 - decay) * (n - mean) ** 2
        share = min(t / total, 1)
        seen.append(n >= mean + (share * lambda_1 + (1 - share) * lambda_2) * variance**0.5)
    return seen, mean, variance


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(1, 60), st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_above_norm_against_a_loop_by_hand(norms, total, decay):
    schedule = AboveNorm(total, decay=decay)
    expected, mean, variance = by_hand(norms, total, decay=decay)
    memory, seen = {}, []
    for t, n in enumerate(norms):
        yes, memory = schedule.decide(t, 0, lambda n=n: torch.tensor(n, dtype=torch.float64), memory)
        seen.append(yes)
    assert seen == expected
    assert memory["mean"] == pytest.approx(mean, rel=1e-12)
    assert memory["variance"] == pytest.approx(variance, rel=1e-12)


def test_above_norm_turns_from_few_steps_to_many():
    generator = random.Random(0)
    norms = [generator.uniform(0.5, 1.5) for _ in range(400)]
    seen = decisions(AboveNorm(400), 400, norms=norms)
    assert sum(seen[20:120]) < sum(seen[300:]) - 20


def test_beyond_the_length_the_level_stays_at_lambda_1():
    memory = {"mean": 10.0, "variance": 1.0}
    decided = [AboveNorm(10, decay=1.0).decide(30, 0, lambda n=n: torch.tensor(n), memory)[0] for n in (8.9, 9.1)]
    assert decided == [False, True]


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_a_poisoned_norm_leaves_the_statistic_alone(poison):
    memory = {"mean": 2.0, "variance": 0.5}
    yes, new = AboveNorm(10).decide(3, 0, lambda: torch.tensor(poison), memory)
    assert yes and new == {"mean": 2.0, "variance": 0.5}


def test_the_memory_handed_in_is_not_written():
    memory = {"mean": 2.0, "variance": 0.5}
    _, new = AboveNorm(10).decide(3, 0, lambda: torch.tensor(5.0), memory)
    assert memory == {"mean": 2.0, "variance": 0.5} and new != memory
    assert all(type(v) is float for v in new.values()), "plain numbers, for a checkpoint"


# --- both ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(0, 20), st.floats(0, 1))
def test_and_is_both(interval, start, p):
    parts = [Every(interval), Window(start), Bernoulli(p)]
    alone = [decisions(s, 40) for s in parts]
    assert decisions(parts[0] & parts[1] & parts[2], 40) == [all(d) for d in zip(*alone, strict=True)]
    assert decisions(parts[2] & (parts[1] & parts[0]), 40) == [all(d) for d in zip(*alone, strict=True)]


def test_both_keeps_both_memories_apart():
    norms = [1.0, 5.0, 2.0, 0.1, 7.0]
    slow, fast = AboveNorm(5, decay=0.9), AboveNorm(5, decay=0.1)
    memory = {}
    for t, n in enumerate(norms):
        yes, memory = (slow & fast).decide(t, 0, lambda n=n: torch.tensor(n, dtype=torch.float64), memory)
    by = [by_hand(norms, 5, decay=d) for d in (0.9, 0.1)]
    assert yes == (by[0][0][-1] and by[1][0][-1])
    assert [memory[k]["mean"] for k in ("first", "second")] == pytest.approx([b[1] for b in by], rel=1e-12)


def test_a_statistic_moves_also_on_steps_that_the_other_schedule_leaves_out():
    norms = [1.0, 5.0, 2.0, 0.1, 7.0]
    for pair in (Every(3) & AboveNorm(5), AboveNorm(5) & Every(3)):
        memory = {}
        for t, n in enumerate(norms):
            _, memory = pair.decide(t, 0, lambda n=n: torch.tensor(n, dtype=torch.float64), memory)
        (kept,) = [m for m in memory.values() if m]
        assert kept["mean"] == pytest.approx(by_hand(norms, 5)[1], rel=1e-12)


def test_schedules_without_memory_leave_none():
    assert (Every(2) & Window(1)).decide(0, 0, no_statistic, {})[1] == (Every(2) & Window(1)).blank() == {}
    assert (Every(2) & AboveNorm(5)).blank() == {"first": {}, "second": {"mean": 0.0, "variance": math.exp(-10)}}


def test_a_schedule_of_ones_own_joins_in():
    class Odd(Schedule):
        def decide(self, t, seed, statistic, memory):
            return t % 2 == 1, {}

    assert decisions(Odd() & Window(4), 8) == [t % 2 == 1 and t >= 4 for t in range(8)]


def test_and_with_something_else_is_refused():
    with pytest.raises(TypeError):
        Always() & 3


REFUSED = {
    "every 0": lambda: Every(0),
    "every half": lambda: Every(2.5),
    "every true": lambda: Every(True),
    "bernoulli above 1": lambda: Bernoulli(1.1),
    "bernoulli below 0": lambda: Bernoulli(-0.1),
    "bernoulli nan": lambda: Bernoulli(math.nan),
    "bernoulli word": lambda: Bernoulli("often"),
    "window turned round": lambda: Window(5, 3),
    "window below 0": lambda: Window(-1),
    "window half": lambda: Window(0.5),
    "above norm of nothing": lambda: AboveNorm(0),
    "above norm decay": lambda: AboveNorm(10, decay=1.5),
    "above norm lambda": lambda: AboveNorm(10, lambda_1=math.inf),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match="was given; expected") as caught:
        REFUSED[name]()
    assert "\n" not in str(caught.value)


def test_the_public_names():
    assert steppe.Every is Every and (Every(2) & Always()) == Both(Every(2), Always())
