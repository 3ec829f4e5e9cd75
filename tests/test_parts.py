"""Parts: they check themselves, and go to plain data and back: in memory, through JSON and through torch.save."""

import dataclasses
import functools
import io
import json
import math

import numpy as np
import pytest
import torch

import steppe
from steppe import curves, views
from steppe._parts import Part, check, check_choice, check_count, decode, encode


def half(t):
    return 0.5


def only_weights(name, param):
    return name.endswith("weight")


PLAIN = [
    steppe.Gradient(),
    steppe.Friendly(),
    steppe.Friendly(sigma=0.25, decay=0.1 + 0.2),
    steppe.Momentum(),
    steppe.Momentum(sign=1, decay=0.9),
    steppe.Previous(),
    steppe.Identity(),
    steppe.Adaptive(eta=1 / 3),
    steppe.Ascent(),
    steppe.Ascent(rho=1e-300, scope="trust", subset="norm"),
    steppe.Ascent(
        rho=curves.FollowLR(0.2, 0.1, 0.3), direction=steppe.Friendly(0.5), metric=steppe.Adaptive(), beta=0.5
    ),
    steppe.Ascent(rho=curves.Linear(0.1, 0.2, 7)),
    steppe.Ascent(curves.Through(((2, 0.0), (5, 0.1))), steppe.Noise(eta=0.1), scope="none"),
    steppe.Look(view=views.Resolution(0.5), autocast=torch.bfloat16),
    steppe.Look(0.25, views.Length(0.25, "end")),
    steppe.Look(2, chosen="hardest"),
    steppe.Spectral(),
    steppe.Spectral(None),
    steppe.Ascent(curves.LossBudget(curves.Linear(0.1, 0.0, 9), 0.5)),
    steppe.Sparse(),
    steppe.Always(),
    steppe.Every(5),
    steppe.Bernoulli(2 / 3),
    steppe.Bernoulli(curves.Cosine(0.1, 0.9, 10)),
    steppe.Window(3),
    steppe.Window(3, 9),
    steppe.AboveNorm(10, -2.0, 2.0, 0.5),
    steppe.Every(2) & steppe.Window(1) & steppe.Bernoulli(curves.Piecewise(0.0, 1.0, 2.5)),
    steppe.Replace(),
    steppe.Mix(2.0),
    steppe.Mix(curves.Quotient(1.0, curves.Linear(0.0, 1.0, 10), 4.0)),
    steppe.SurrogateGap(0.4),
    steppe.Reuse(),
    steppe.Reuse(0.1, push="natural", refresh=steppe.Mix(curves.Linear(0.0, 1.0, 9))),
    steppe.Decoupled(0.9),
]
WITH_FUNCTIONS = [
    steppe.Ascent(rho=half),
    steppe.Ascent(subset=only_weights, rho=curves.Linear(0.1, 0.2, 7)),
    steppe.Bernoulli(half),
    steppe.Window(2) & (steppe.Bernoulli(half) & steppe.Every(2)),
    steppe.Mix(curves.Quotient(1.0, half, 4.0)),
    steppe.Reuse(half, refresh=steppe.SurrogateGap(half)),
]


def through_json(data):
    return json.loads(json.dumps(data, allow_nan=False))


def through_torch(data):
    file = io.BytesIO()
    torch.save(data, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


WAYS = {"memory": lambda data: data, "json": through_json, "torch": through_torch}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", PLAIN, ids=lambda part: type(part).__name__)
def test_there_and_back(part, way):
    saved = WAYS[way](encode(part))
    assert decode(saved, None) == part
    assert decode(saved, steppe.Reuse()) == part, "whatever stands in its place at load"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", WITH_FUNCTIONS, ids=lambda part: type(part).__name__)
def test_a_function_comes_from_the_object_at_hand(part, way):
    saved = WAYS[way](encode(part))
    assert decode(saved, part) == part


@pytest.mark.parametrize("part", WITH_FUNCTIONS, ids=lambda part: type(part).__name__)
def test_a_function_is_required_at_load_by_its_name(part):
    name = "only_weights" if isinstance(part, steppe.Ascent) and callable(part.subset) else "half"
    with pytest.raises(ValueError, match=f"{name}.*construct with the same function"):
        decode(through_json(encode(part)), type(part)() if type(part) is steppe.Ascent else None)


def third(t):
    return 1 / 3


def test_another_function_by_another_name_is_refused():
    with pytest.raises(ValueError, match="own function 'half'"):
        decode(encode(steppe.Bernoulli(half)), steppe.Bernoulli(third))


def test_a_part_does_not_stand_in_for_a_function():
    with pytest.raises(ValueError, match="own function 'half'"):
        decode(encode(steppe.Bernoulli(half)), steppe.Bernoulli(curves.Linear(0.0, 1.0, 3)))


def test_only_names_of_functions_are_written():
    text = json.dumps(encode(steppe.Ascent(rho=half, subset=lambda name, p: True)))
    assert '"half"' in text and "lambda" in text and "0x" not in text


class Halving:
    def __call__(self, t):
        return 0.5**t


@pytest.mark.parametrize("make", [Halving, lambda: functools.partial(half)], ids=["object", "partial"])
def test_a_callable_object_is_named_alike_in_every_process(make):
    """By its class and not by its address: another process has an equal object elsewhere."""
    saved = through_json(encode(steppe.Bernoulli(make())))
    assert "0x" not in json.dumps(saved)
    current = steppe.Bernoulli(make())
    assert decode(saved, current) == current


def test_every_concrete_part_is_tried_here():
    def kinds(part):
        yield type(part)
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            if isinstance(value, Part):
                yield from kinds(value)

    tried = {k for p in PLAIN for k in kinds(p)}
    ours = {k for k in Part.known.values() if k.__module__.startswith("steppe.") and dataclasses.is_dataclass(k)}
    assert ours <= tried, f"add {ours - tried} to PLAIN"


@pytest.mark.parametrize("part", PLAIN, ids=lambda part: type(part).__name__)
def test_parts_are_frozen_and_hashable_values(part):
    assert hash(part) == hash(decode(encode(part), None))
    for f in dataclasses.fields(part):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, f.name, 1)


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="'NoSuchPart', which is not defined here"):
        decode({"part": "NoSuchPart"}, None)


def test_a_part_of_ones_own_is_found_by_name():
    @dataclasses.dataclass(frozen=True)
    class Mondays(steppe.Schedule):
        weeks: tuple[int, ...] = ()

    part = Mondays((1, 2))
    assert decode(through_json(encode(part)), None) == part


def test_what_is_out_of_range_is_refused_from_a_state_too():
    saved = encode(steppe.Bernoulli(0.5)) | {"p": 1.5}
    with pytest.raises(ValueError, match="p=1.5 was given"):
        decode(saved, None)


@pytest.mark.parametrize(
    "part",
    [
        steppe.Ascent(rho=np.logspace(-2, 0, 3)[1]),
        steppe.Bernoulli(np.float64(0.5)),
        steppe.Mix(np.float64(2.0)),
        steppe.Adaptive(np.float64(0.1)),
        curves.Linear(np.float64(0.1), 1.0, 3),
    ],
    ids=lambda part: type(part).__name__,
)
def test_a_number_of_numpy_becomes_a_plain_one(part):
    assert decode(through_torch(encode(part)), None) == part


# --- checks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1, 0.5, 0.0, 1.0])
def test_check_accepts_numbers_in_range(value):
    check("x", value, 0.0, 1.0)


@pytest.mark.parametrize("value", [-1e-9, 1 + 1e-9, math.nan, math.inf, -math.inf, True, "0.5", None, [0.5], 1j])
def test_check_refuses_the_rest(value):
    with pytest.raises(ValueError, match="x=.* was given; expected a number from 0 to 1; because"):
        check("x", value, 0.0, 1.0, "because")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_check_without_limits_wants_a_finite_number(value):
    check("x", -1e300)
    with pytest.raises(ValueError, match="expected a finite number$"):
        check("x", value)
    with pytest.raises(ValueError, match="expected a finite number of at least 0$"):
        check("x", value, 0.0)


def test_check_count():
    check_count("n", 1)
    check_count("n", 0, 0)
    for value in (0, -1, 1.0, True, "1", None):
        with pytest.raises(ValueError, match="n=.* was given; expected a whole number of at least 1"):
            check_count("n", value)


def test_check_choice():
    check_choice("c", "a", ("a", "b"))
    for value in ("A", None, 3, ["a"], ("a",)):
        with pytest.raises(ValueError, match="c=.* was given; expected one of 'a', 'b'"):
            check_choice("c", value, ("a", "b"))


TAKES_NO_CURVE = {
    "eta": lambda: steppe.Adaptive(half),
    "sigma": lambda: steppe.Friendly(half),
    "decay": lambda: steppe.Friendly(1.0, half),
    "decay of the momentum": lambda: steppe.Momentum(decay=half),
    "above norm's decay": lambda: steppe.AboveNorm(10, decay=half),
    "lambda_1": lambda: steppe.AboveNorm(10, lambda_1=half),
    "start of a line": lambda: curves.Linear(half, 1.0, 3),
    "before": lambda: curves.Piecewise(half, 1.0, 3),
    "maximum": lambda: curves.Quotient(1.0, 0.5, half),
    "rho_max": lambda: curves.FollowLR(half, 0.1, 0.3),
}


@pytest.mark.parametrize("name", TAKES_NO_CURVE)
def test_a_function_is_refused_where_no_curve_is_taken(name):
    with pytest.raises((ValueError, TypeError), match="was given.*expected"):
        TAKES_NO_CURVE[name]()


def stepped(**parts):
    model = torch.nn.Linear(2, 1)
    sharp = steppe.SharpnessAware(model, torch.optim.SGD(model.parameters(), lr=0.1), **parts)
    return sharp.backward(lambda: model(torch.ones(1, 2)).sum())


BAD_CURVES = {
    "rho nan": {"ascent": steppe.Ascent(rho=lambda t: math.nan)},
    "rho below 0": {"ascent": steppe.Ascent(rho=lambda t: -0.1)},
    "p above 1": {"schedule": steppe.Bernoulli(lambda t: 1.5)},
    "p nan": {"schedule": steppe.Bernoulli(lambda t: math.nan)},
    "p nothing": {"schedule": steppe.Bernoulli(lambda t: None)},
    "gamma nan": {"combine": steppe.Mix(lambda t: math.nan)},
    "gamma 1": {"combine": steppe.Decoupled(lambda t: 1.0)},
    "gamma above 1": {"combine": steppe.Decoupled(lambda t: 1.5)},
    "alpha nan": {"combine": steppe.SurrogateGap(lambda t: math.nan)},
}


@pytest.mark.parametrize("name", BAD_CURVES)
def test_what_a_curve_gives_is_checked_when_it_is_read(name):
    """As ``check`` promises; a radius of NaN would otherwise switch the method off without a word."""
    with pytest.raises(ValueError, match="expected"):
        stepped(**BAD_CURVES[name])
