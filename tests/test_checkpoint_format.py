"""The state as plain data: what it holds, what reads it, and that a state which does not fit changes nothing."""

import copy
import io
import json

import numpy as np
import pytest
import torch
from torch import nn

import steppe
from steppe import curves


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
EVERYTHING = {
    "ascent": steppe.Ascent(0.1, steppe.Friendly(0.5), steppe.Adaptive(), scope="trust"),
    "schedule": steppe.Every(2) & steppe.AboveNorm(20, lambda_1=-5.0, lambda_2=-5.0),
    "combine": steppe.Reuse(0.3, refresh=steppe.Mix(0.8)),
}


def build(model=None, seed=3, **parts):
    model = model or network()
    return steppe.SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.05), seed=seed, **parts)


def train(sharp, steps):
    for _ in range(steps):
        sharp.backward(lambda: (sharp.model(X) - 1).square().mean())
        sharp.optimizer.step()
        sharp.optimizer.zero_grad()
    return sharp


def flat(tree, path=()):
    """Every leaf of nested dicts, by its path."""
    if isinstance(tree, dict):
        for k, v in tree.items():
            yield from flat(v, (*path, k))
    elif isinstance(tree, list):
        for i, v in enumerate(tree):
            yield from flat(v, (*path, i))
    else:
        yield path, tree


def same(a, b):
    a, b = dict(flat(a)), dict(flat(b))
    return list(a) == list(b) and all(
        torch.equal(v, b[k]) if isinstance(v, torch.Tensor) else v == b[k] and type(v) is type(b[k])
        for k, v in a.items()
    )


def frozen(sharp):
    """All that a state decides, copied."""
    return copy.deepcopy(
        [sharp.ascent, sharp.schedule, sharp.combine, sharp.step, sharp.seed, sharp.same_dropout]
    ), copy.deepcopy(sharp.memory)


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_the_keys():
    state = build().state_dict()
    assert set(state) == {
        "format",
        "step",
        "seed",
        "same_dropout",
        "rounding",
        "memory",
        "ascent",
        "schedule",
        "combine",
    }
    assert state["format"] == 1 and state["step"] == 0 and state["memory"] == {}


def test_a_new_state_is_json_to_the_last_bit():
    sharp = build(ascent=steppe.Ascent(rho=0.1 + 0.2), schedule=steppe.Bernoulli(curves.Cosine(1 / 3, 0.7, 9)))
    state = sharp.state_dict()
    assert json.loads(json.dumps(state, allow_nan=False)) == state and state["ascent"]["rho"] == 0.1 + 0.2
    other = build(ascent=sharp.ascent, schedule=sharp.schedule)
    other.load_state_dict(state)
    assert frozen(other) == frozen(sharp)


def test_memory_is_keyed_by_parameter_names_and_the_rest_is_plain():
    state = train(build(**EVERYTHING), 3).state_dict()
    leaves = dict(flat(state))
    tensors = {p: v for p, v in leaves.items() if isinstance(v, torch.Tensor)}
    names = [k for k, _ in network().named_parameters()]
    assert {p for p in tensors if p[:3] == ("memory", "ascent", "average")} == {
        ("memory", "ascent", "average", n) for n in names
    }
    assert {p[-1] for p in tensors if p[:3] == ("memory", "combine", "g_v")} == set(names)
    for path, value in leaves.items():
        assert isinstance(value, torch.Tensor) or type(value) in (bool, int, float, str, type(None)), path
    assert all(type(k) in (str, int) for path in leaves for k in path)


def test_a_state_goes_through_torch_load_with_weights_only():
    state = train(build(**EVERYTHING), 3).state_dict()
    assert same(through_file(state), state)


def test_a_number_of_numpy_in_a_setting_does_not_spoil_the_file():
    """A grid of radii comes from numpy, and its float64 passes for a float."""
    sharp = build(ascent=steppe.Ascent(rho=np.logspace(-2, 0, 3)[1]), combine=steppe.Mix(np.float64(0.5)))
    state = through_file(sharp.state_dict())
    assert state["ascent"]["rho"] == 0.1 and type(state["ascent"]["rho"]) is float


def test_loading_what_was_saved_gives_the_same_state():
    sharp = train(build(**EVERYTHING), 3)
    other = build(**EVERYTHING)
    other.load_state_dict(through_file(sharp.state_dict()))
    assert same(other.state_dict(), sharp.state_dict())
    assert other.ascent == sharp.ascent and other.schedule == sharp.schedule and other.combine == sharp.combine


def test_a_state_is_not_moved_by_later_steps():
    sharp = train(build(**EVERYTHING), 3)
    state = sharp.state_dict()
    kept = copy.deepcopy(state)
    train(sharp, 5)
    assert same(state, kept) and not same(sharp.state_dict(), kept)


def test_a_state_that_was_loaded_is_not_moved_by_the_one_who_loaded_it():
    state = train(build(**EVERYTHING), 3).state_dict()
    kept = copy.deepcopy(state)
    other = build(**EVERYTHING)
    other.load_state_dict(state)
    train(other, 5)
    assert same(state, kept)
    for _, value in flat(state["memory"]):
        if isinstance(value, torch.Tensor):
            value.fill_(9.0)
    assert not any(bool((v == 9.0).all()) for _, v in flat(other.memory) if isinstance(v, torch.Tensor))


def test_the_order_of_parameters_and_groups_does_not_matter():
    sharp = train(build(**EVERYTHING), 3)
    model = network()
    model.load_state_dict(sharp.model.state_dict())
    groups = [{"params": list(model[i].parameters())} for i in (2, 0, 1)]
    other = steppe.SharpnessAware(model, torch.optim.SGD(groups, lr=0.05), seed=3, **EVERYTHING)
    other.load_state_dict(sharp.state_dict())
    train(sharp, 4), train(other, 4)
    assert all(torch.equal(a, b) for a, b in zip(sharp.model.parameters(), model.parameters(), strict=True))


def test_loading_forgets_the_step_under_construction():
    sharp = build(schedule=steppe.Window(0, 1))
    state = train(build(schedule=steppe.Window(0, 1)), 1).state_dict()
    sharp.backward(lambda: sharp.model(X).sum())
    assert sharp.last.ascended
    sharp.load_state_dict(state)
    sharp.backward(lambda: sharp.model(X).sum())
    assert not sharp.last.ascended and sharp.step == 1


# --- states that do not fit ---------------------------------------------------------------------------------


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


def changed(**values):
    return lambda state: {**state, **values}


def memory_of(name, shape):
    return changed(memory={"ascent": {"average": {name: torch.zeros(shape)}}})


UNFIT = {
    "nothing": (lambda state: None, "not the state of a steppe.SharpnessAware"),
    "a list": (lambda state: [state], "not the state of a steppe.SharpnessAware"),
    "empty": (lambda state: {}, "not the state of a steppe.SharpnessAware"),
    "an optimizer's": (lambda state: {"state": {}, "param_groups": []}, "not the state of a steppe.SharpnessAware"),
    "no memory": (without("memory"), "not the state of a steppe.SharpnessAware"),
    "one more key": (changed(extra=1), "not the state of a steppe.SharpnessAware"),
    "another format": (changed(format=2), "not the state of a steppe.SharpnessAware"),
    "an unknown part": (changed(schedule={"part": "Sometimes"}), "'Sometimes', which is not defined here"),
    "out of range": (changed(schedule={"part": "Bernoulli", "p": 2.0}), "p=2.0 was given"),
    "a lost function": (changed(schedule={"part": "Bernoulli", "p": {"function": "half"}}), "own function 'half'"),
    "another parameter": (memory_of("3.weight", (4,)), "'3.weight', but no such parameter"),
    "another shape": (memory_of("0.weight", (9, 9)), r"shape \(9, 9\) for '0.weight', but it has shape \(4, 3\)"),
    "another lost function": (
        lambda state: {**state, "ascent": {**state["ascent"], "subset": {"function": "<lambda>"}}},
        "own function '<lambda>'",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_state_is_refused_in_one_sentence_and_changes_nothing(name):
    spoil, words = UNFIT[name]
    sharp = train(build(**EVERYTHING), 3)
    before = frozen(sharp)
    with pytest.raises(ValueError, match=words) as caught:
        sharp.load_state_dict(spoil(train(build(**EVERYTHING), 2).state_dict()))
    assert "\n" not in str(caught.value)
    now = frozen(sharp)
    assert now[0] == before[0] and same(now[1], before[1])
    train(sharp, 2)


MALFORMED = {
    "a part that is no part": changed(schedule={"part": "Gradient"}),
    "a number for a part": changed(combine=3),
    "a part without a name": changed(ascent={"rho": 0.1}),
    "a part with one more field": changed(schedule={"part": "Every", "interval": 2, "phase": 1}),
    "a part with a field less": changed(schedule={"part": "Every"}),
    "a step of words": changed(step="three"),
    "a step below 0": changed(step=-1),
    "a seed of words": changed(seed="three"),
    "memory that is no dict": changed(memory=3),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_state_is_refused_and_changes_nothing(name):
    """A state comes from a file; what is wrong in it must show at load and not steps later."""
    sharp = train(build(**EVERYTHING), 3)
    before = frozen(sharp)
    with pytest.raises((ValueError, TypeError)):
        sharp.load_state_dict(MALFORMED[name](build(**EVERYTHING).state_dict()))
    now = frozen(sharp)
    assert now[0] == before[0] and same(now[1], before[1])


def test_no_code_comes_with_a_state():
    """Parts are found by name among those defined; nothing is imported and nothing is called by path."""
    for part in ("os.system", "builtins.eval", "torch.nn.Linear", "SharpnessAware"):
        state = {**build().state_dict(), "schedule": {"part": part}}
        with pytest.raises(ValueError, match="which is not defined here"):
            build().load_state_dict(state)
