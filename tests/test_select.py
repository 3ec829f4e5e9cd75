"""SL-SAM's bandit: the draws, the update of the probabilities and their projection, against the slow reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import reference
from tests.reference import sparse

import steppe
from steppe._parts import decode, encode
from steppe.select import Select, Sparse, block, project

LOW = 1e-3
numbers = st.floats(-50, 50)


@st.composite
def weights_and_total(draw: st.DrawFn) -> tuple[list[float], float]:
    """Logarithms of weights, some far apart or equal, and a sum that can be reached."""
    log_w = draw(st.lists(st.one_of(numbers, st.sampled_from([0.0, -2000.0, -900.0, 1.5])), min_size=1, max_size=30))
    share = draw(st.floats(LOW, 1.0))
    return log_w, share * len(log_w)


@given(weights_and_total())
def test_the_projection_keeps_sum_bounds_and_order(case: tuple[list[float], float]) -> None:
    log_w, total = case
    p = project(log_w, total, LOW)
    assert math.isclose(math.fsum(p), total, rel_tol=1e-9)
    assert all(LOW <= x <= 1.0 for x in p)
    order = sorted(range(len(p)), key=lambda i: log_w[i])
    assert all(p[a] <= p[b] + 1e-15 for a, b in zip(order, order[1:], strict=False))
    assert all(p[a] == p[b] for a in order for b in order if log_w[a] == log_w[b])


@given(weights_and_total())
def test_the_projection_is_that_of_the_reference(case: tuple[list[float], float]) -> None:
    log_w, total = case
    np.testing.assert_allclose(project(log_w, total, LOW), sparse.projected(log_w, total, LOW), rtol=1e-9, atol=1e-12)


@given(weights_and_total())
def test_nothing_feasible_is_nearer_in_relative_entropy(case: tuple[list[float], float]) -> None:
    """The projection's own meaning, by its optimality condition: p_i / w_i is one number wherever no bound holds."""
    log_w, total = case
    p = project(log_w, total, LOW)
    inside = [math.log(x) - v for x, v in zip(p, log_w, strict=True) if LOW * (1 + 1e-9) < x < 1 - 1e-9]
    capped = [math.log(x) - v for x, v in zip(p, log_w, strict=True) if x >= 1 - 1e-9]
    floored = [math.log(x) - v for x, v in zip(p, log_w, strict=True) if x <= LOW * (1 + 1e-9)]
    assert not inside or max(inside) - min(inside) < 1e-7
    factor = inside[0] if inside else None
    assert factor is None or all(c <= factor + 1e-7 for c in capped) and all(f >= factor - 1e-7 for f in floored)


def test_a_projection_by_hand() -> None:
    """Weights 8, 1, 1 and 1e-9 to the sum 2: one is capped, one is at the bound, the rest share what is left."""
    p = project([math.log(8), 0.0, 0.0, math.log(1e-9)], 2.0, 0.1)
    assert p == pytest.approx([1.0, 0.45, 0.45, 0.1], abs=1e-15)


UNITS = [f"u{i}" for i in range(6)]


@settings(max_examples=25)
@given(
    st.dictionaries(st.sampled_from(UNITS), st.floats(0, 3), min_size=1),
    st.lists(st.floats(0.01, 0.9), min_size=6, max_size=6),
    st.floats(0, 0.1),
)
def test_the_update_is_that_of_the_reference(norms: dict[str, float], start: list[float], step_size: float) -> None:
    s, p = sum(start) / 6, dict(zip(UNITS, start, strict=True))
    learned = Sparse(s, step_size=step_size).learn(norms, UNITS, {"p": p})["p"]
    expected = sparse.exp3(p, norms, s, step_size, LOW)
    assert list(learned) == UNITS
    assert learned == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_an_update_by_hand() -> None:
    """Two of three active with p = .5: l = (n_max^2 - n^2) / .25, and only the smaller gradient's weight shrinks."""
    p = Sparse(0.5, step_size=0.1).learn({"a": 2.0, "b": 1.0}, ["a", "b", "c"], {})["p"]
    w = [0.5, 0.5 * math.exp(-0.1 * (4 - 1) / 0.25 / 0.5), 0.5]
    assert list(p.values()) == pytest.approx([1.5 * x / sum(w) for x in w], rel=1e-12)
    assert p["a"] == p["c"] > 0.5 > p["b"]


def test_the_unit_of_the_loss_is_that_of_the_step_size() -> None:
    norms = {"a": 2.0, "b": 1.0}
    louder = Sparse(0.5, step_size=0.1).learn({k: 8 * n for k, n in norms.items()}, ["a", "b", "c"], {})
    assert louder == Sparse(0.5, step_size=6.4).learn(norms, ["a", "b", "c"], {})


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_an_overflow_teaches_nothing(bad: float) -> None:
    p = {"a": 0.3, "b": 0.7}
    assert Sparse(0.5).learn({"a": bad, "b": 1.0}, ["a", "b"], {"p": p}) == {"p": p}


def test_extreme_gradients_leave_every_unit_a_chance() -> None:
    part, memory = Sparse(0.2, step_size=1.0), {}
    for t in range(300):
        drawn = part.active(t, 0, UNITS, memory)
        memory = part.learn({u: 1e6 if u == "u3" else 1e-6 for u in drawn}, UNITS, memory)
        assert math.isclose(math.fsum(memory["p"].values()), 0.2 * 6, rel_tol=1e-9)
        assert all(LOW <= x <= 1 for x in memory["p"].values())
    assert max(memory["p"], key=memory["p"].get) == "u3" and memory["p"]["u3"] == 1.0


def test_step_size_zero_and_s_one_keep_the_probabilities() -> None:
    assert Sparse(0.2, step_size=0.0).learn({"a": 1.0, "b": 9.0}, ["a", "b"], {})["p"] == pytest.approx(
        {"a": 0.2, "b": 0.2}, abs=1e-16
    )
    assert Sparse(1.0).learn({"a": 1.0, "b": 9.0}, ["a", "b"], {})["p"] == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("s", [0.05, 0.2, 0.6])
def test_the_share_of_active_units_is_s_given_that_there_is_one(s: float) -> None:
    """Of 4000 steps: E = s / (1 - (1 - s)^L) per unit, within four standard deviations."""
    part, steps = Sparse(s), 4000
    drawn = [part.active(t, 5, UNITS, {}) for t in range(steps)]
    wanted = s / (1 - (1 - s) ** len(UNITS))
    for u in UNITS:
        share = sum(u in d for d in drawn) / steps
        assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / steps)
    assert all(drawn)


def test_draws_follow_from_seed_and_step_alone_and_are_those_of_the_reference() -> None:
    part, p = Sparse(0.3), dict(zip(UNITS, [0.05, 0.1, 0.2, 0.3, 0.4, 0.75], strict=True))
    for t in range(200):
        drawn = part.active(t, 7, UNITS, {"p": p})
        assert drawn == part.active(t, 7, UNITS, {"p": p}) == set(sparse.draw(7, t, UNITS, p))
    assert len({frozenset(part.active(t, 7, UNITS, {"p": p})) for t in range(200)}) > 20
    assert [part.active(t, 7, UNITS, {}) for t in range(9)] != [part.active(t, 8, UNITS, {}) for t in range(9)]


def test_the_schedules_own_draws_are_as_they_were() -> None:
    assert [steppe.schedule.uniform(3, t) for t in range(5)] == [reference.coin(3, t) for t in range(5)]
    assert steppe.schedule.uniform(3, 1, 0, 0) != steppe.schedule.uniform(3, 1)


def test_a_unit_that_joins_starts_at_s_and_one_that_leaves_is_forgotten() -> None:
    part = Sparse(0.25)
    memory = part.learn({"a": 1.0}, ["a", "b"], {})
    joined = part.learn({"c": 1.0}, ["b", "c"], memory)["p"]
    assert set(joined) == {"b", "c"} and math.isclose(sum(joined.values()), 0.5)


BLOCKS = {
    "encoder.layer.3.attention.self.query.weight": "encoder.layer.3",
    "base_model.model.model.layers.10.self_attn.q_proj.lora_A.default.weight": "base_model.model.model.layers.10",
    "layer1.0.conv1.weight": "layer1.0",
    "embeddings.word_embeddings.weight": "embeddings.word_embeddings",
    "embeddings.LayerNorm.bias": "embeddings.LayerNorm",
    "classifier.weight": "classifier",
    "0.bias": "0",
    "scale": "scale",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_repeated_layers_and_else_modules(name: str) -> None:
    assert block(name) == BLOCKS[name]
    assert Sparse(level="block").unit(name) == BLOCKS[name]
    assert Sparse().unit(name) == name
    assert Sparse(level=lambda n: n[0]).unit(name) == name[0]


def test_it_is_a_part_that_a_checkpoint_holds() -> None:
    part = Sparse(0.3, "block", 0.01, 0.02)
    assert decode(encode(part), None) == part
    own = Sparse(level=block)
    assert decode(encode(own), own) == own
    with pytest.raises(ValueError, match="your own function 'block'"):
        decode(encode(own), Sparse())


BAD = {
    "no share": ({"s": 0}, "s=0 was given; expected a number from 0.001 to 1"),
    "more than all": ({"s": 1.1}, "s=1.1 was given"),
    "s below p_min": ({"s": 0.1, "p_min": 0.2}, "s lies between p_min and 1|s is the share of active units"),
    "an unknown level": ({"level": "layer"}, "expected one of 'tensor', 'block'"),
    "no p_min": ({"p_min": 0.0}, "p_min=0.0 was given"),
    "a negative step": ({"step_size": -1e-3}, "step_size=-0.001 was given"),
    "a step that is no number": ({"step_size": math.nan}, "step_size=nan was given"),
    "a share in words": ({"s": "few"}, "s='few' was given"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_in_one_sentence(case: str) -> None:
    given_, words = BAD[case]
    with pytest.raises(ValueError, match=words) as error:
        Sparse(**given_)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_the_base_part_learns_nothing_and_leaves_the_choice_open() -> None:
    part = Select()
    assert part.unit("a.b") == "a.b" and part.blank(["a"]) == {}
    assert part.learn({"a": 1.0}, ["a"], {"kept": 1}) == {"kept": 1}
    with pytest.raises(NotImplementedError):
        part.active(0, 0, ["a"], {})
