"""find_rho: what it proposes, what it leaves as it was, what it refuses."""

import json
import math
from functools import partial

import pytest
import torch
from tests import problems
from tests.bowl import G, H, N, W, bowl, bowl_loss
from tests.diagnostics.test_untouched import prepared, state

import steppe
from steppe.diagnostics import AtRadius, Trial
from steppe.diagnostics.rho import _linear, _verdict
from steppe.methods import METHODS

WITH_RADIUS = [
    name
    for name, row in METHODS.items()
    if not row.lora and row.optimizer is None and not row.per_sample and name not in ("tail_sam", "le_sam")  # refused
]


def find(model, optimizer, method="sam", **options):
    batches = list(problems.batches(4))
    defaults = {"radii": (0.05, 0.1), "looks": 2, "trial": 3}
    return steppe.find_rho(model, optimizer, problems.loss_of(model), batches, method, **defaults | options)


@pytest.mark.parametrize("method", WITH_RADIUS)
def test_every_method_with_a_radius_and_all_is_as_before(method):
    model, optimizer = prepared()
    before = state(model, optimizer)
    found = find(model, optimizer, method, after=2)
    assert problems.same(before, state(model, optimizer))
    assert found.rho in (0.05, 0.1)


def test_a_method_that_wants_a_loss_of_each_sample_is_refused_and_all_is_as_before():
    model, optimizer = prepared()
    before = state(model, optimizer)
    with pytest.raises(ValueError, match="the search has the mean loss only"):
        find(model, optimizer, "esam")
    assert problems.same(before, state(model, optimizer))


@pytest.mark.parametrize("base", problems.BASES)
def test_the_next_steps_are_those_of_a_run_without_a_search(base):
    ends = []
    for searched in (False, True):
        model, optimizer = prepared(base)
        sharp = steppe.LookSAM(model, optimizer, k=2)
        if searched:
            find(model, optimizer, "look_sam")
        optimizer.zero_grad()
        ends.append(problems.train(model, optimizer, sharp, steps=4))
    assert problems.same(*ends)


def test_all_is_as_before_when_a_pass_raises():
    model, optimizer = prepared()
    before, calls = state(model, optimizer), []

    def loss_of(batch):
        calls.append(1)
        if len(calls) == 9:
            raise KeyError("no loss")
        return problems.loss_of(model)(batch)

    with pytest.raises(KeyError, match="no loss"):
        steppe.find_rho(model, optimizer, loss_of, list(problems.batches(4)), trial=3)
    assert problems.same(before, state(model, optimizer))


def test_the_same_search_twice_finds_the_same():
    model, optimizer = prepared()
    assert find(model, optimizer) == find(model, optimizer)


def on_the_bowl(**options):
    model, optimizer = bowl()
    return steppe.find_rho(model, optimizer, lambda _: bowl_loss(model)(), [None], **options)


def test_the_linear_regime_of_the_bowl_ends_where_its_closed_form_says():
    radii = [0.01 * 1.05**i for i in range(90)]
    found = on_the_bowl(radii=radii, trial=0, looks=1)
    there = H @ (W + found.linear * G / N)
    cosine = float(G @ there / (N * there.norm()))
    if found.curve[-1].cosine < 0.8:
        assert cosine == pytest.approx(0.8, abs=2e-3)
    else:
        assert found.linear == found.curve[-1].rho and cosine >= 0.8


def test_a_regime_that_never_ends_is_not_said_to_end():
    found = on_the_bowl(radii=(0.01, 0.02), trial=0, looks=1)
    assert found.curve[-1].cosine > 0.8 and "linear up to rho = 0.02, the last looked at" in found.why


def test_a_plateau_bounds_the_radius():
    """Beyond |w| = 1 the loss is flat: an ascent that lands there sees no gradient."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x = torch.ones(1, 1)
    well = lambda _: model(x).clamp(-1, 1).square().sum()  # noqa: E731
    found = steppe.find_rho(model, optimizer, well, [None], radii=(0.05, 0.1, 0.15, 0.3, 0.5), trial=20, looks=1)
    assert found.rho == 0.15
    assert [t.rho for t in found.trials] == [0.15] and found.trials[0].kept >= 0.5, "it learns: no other is tried"


def test_a_method_is_a_name_an_ascent_or_a_recipe():
    found = [
        on_the_bowl(method=method, radii=(0.05, 0.1), trial=2)
        for method in (
            "asam",
            steppe.Ascent(9.0, metric=steppe.Adaptive()),
            steppe.ASAM,
            partial(steppe.ASAM, eta=0.01),
        )
    ]
    assert all(other == found[0] for other in found)
    assert found[0] != on_the_bowl(method="sam", radii=(0.05, 0.1), trial=2)


def test_settings_of_a_named_method_are_heard():
    model, optimizer = prepared()
    assert find(model, optimizer, "sam", samples=2).curve != find(model, optimizer, "sam").curve
    with pytest.raises(TypeError, match="sampels"):
        find(model, optimizer, "sam", sampels=2)


def test_a_curve_that_is_not_along_the_methods_direction_says_so():
    """Before the first step momentum is none."""
    model, _ = bowl()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    search = partial(steppe.find_rho, model, optimizer, lambda _: bowl_loss(model)(), [None], trial=0)
    assert search("msam").why.endswith("has nothing to go by at step 0: the curve is the gradient's.")
    assert "go by" not in search("msam", after=3).why + search("sam").why


def test_after_looks_at_a_trained_model():
    assert on_the_bowl(after=5, trial=0).curve[0].predicted < on_the_bowl(trial=0).curve[0].predicted


def test_recommended_is_a_name_as_in_the_commands():
    model, optimizer = prepared()
    found = find(model, optimizer, "recommended", samples=2)
    assert found.curve == find(model, optimizer, "sam", samples=2).curve


def test_a_ramp_that_is_over_is_none():
    model, optimizer = prepared()
    ramped = partial(steppe.recommended, samples=2, ramp=0.5, total_steps=8)
    assert find(model, optimizer, ramped, after=4) == find(model, optimizer, "recommended", samples=2, after=4)


def test_trials_in_which_the_method_would_not_ascend_are_not_run():
    """They would be the base's, whatever the radius: every radius would learn as much."""
    late = partial(steppe.LateSAM, start=5)
    found = on_the_bowl(method=late, radii=(0.05, 0.1), trial=4)
    assert not found.trials and "ascends in none of 4 steps from step 0 on (Window(start=5" in found.why
    assert found.rho == on_the_bowl(method=late, radii=(0.05, 0.1), trial=0).rho
    begun = on_the_bowl(method=late, radii=(0.05, 0.1), trial=4, after=5)
    assert begun.trials and begun == on_the_bowl(method="sam", radii=(0.05, 0.1), trial=4, after=5)


def test_the_base_of_a_method_that_brings_one():
    model = problems.net()
    optimizer = steppe.optim.AMSGrad(model.parameters(), lr=1e-3)
    assert find(model, optimizer, "adasam").rho > 0


BAD = [
    ({"looks": 0}, ValueError, "looks=0"),
    ({"after": -1}, ValueError, "after=-1"),
    ({"trial": 2.5}, ValueError, "trial=2.5"),
    ({"keep": 1.5}, ValueError, "keep=1.5"),
    ({"keep": float("nan")}, ValueError, "keep=nan"),
    ({"radii": ()}, ValueError, "at least one number above 0"),
    ({"radii": (0.1, -1.0)}, ValueError, "radii=-1.0"),
    ({"method": "samm"}, ValueError, "did you mean 'sam'"),
    ({"method": "nbar"}, ValueError, "no radius to find by ascents"),
    ({"method": "bi_lora"}, ValueError, "it acts on LoRA's factors alone"),
    ({"method": 3}, TypeError, "expected a method's name, an Ascent or a recipe"),
    ({"method": lambda model, optimizer, rho: 3}, TypeError, "returned an int; expected a steppe object"),
    ({"method": "tail_sam"}, ValueError, "radius 0 at the optimizer's present learning rate"),
    ({"method": "le_sam"}, ValueError, "follows a budget of the loss"),
    (
        {"method": partial(steppe.recommended, samples=1, ramp=0.5, total_steps=20)},
        ValueError,
        r"radius 0 at step 0 \(Linear\(.*search without its ramp, or after=",
    ),
    ({"method": steppe.Ascent(), "hardest": 0.5}, ValueError, "one loss per sample"),
    ({"method": steppe.Ascent(), "samples": 3}, TypeError, r"look=steppe.Look\(samples=3\)"),
]


@pytest.mark.parametrize(("options", "error", "words"), BAD, ids=[words for *_, words in BAD])
def test_bad_input_is_refused_before_anything_runs(options, error, words):
    model, optimizer = bowl()

    def loss_of(batch):
        raise AssertionError("something ran")

    with pytest.raises(error, match=words):
        steppe.find_rho(model, optimizer, loss_of, [None], **options)


def test_a_group_with_a_radius_of_its_own_is_refused():
    model, optimizer = bowl()
    optimizer.param_groups[0]["rho"] = 0.1
    with pytest.raises(ValueError, match="which wins over any that is found"):
        steppe.find_rho(model, optimizer, lambda _: bowl_loss(model)(), [None])


def test_no_batches_are_refused():
    model, optimizer = bowl()
    with pytest.raises(ValueError, match="batches gave no batch"):
        steppe.find_rho(model, optimizer, lambda _: bowl_loss(model)(), [])


def looks(*cosines):
    return tuple(AtRadius(0.1 * 2**i, 0.0, 1.0, c, 0.0, 0.0) for i, c in enumerate(cosines))


@pytest.mark.parametrize(
    ("cosines", "linear"),
    [
        ((0.99, 0.9, 0.7), 0.2 * math.sqrt(2)),  # halfway between 0.9 and 0.7 is halfway by the logarithm
        ((0.99, 0.8, 0.5), 0.2),
        ((0.99, 0.95), 0.2),
        ((0.5, 0.4), 0.1),
    ],
)
def test_where_the_cosine_falls_to_the_mark(cosines, linear):
    assert _linear(looks(*cosines)) == pytest.approx(linear)


def trials_at(**kept):
    """Trials that kept so much, by radius."""
    return tuple(Trial(float(rho[1:].replace("_", ".")), 1.0, share) for rho, share in kept.items())


VERDICTS = [
    ((), 0.1, "learned nothing in 50 steps"),
    (
        trials_at(r0_1=0.9), 0.1,
        "0.9; rho = 0.1 is the largest below, and learns: of what the base learns in 50 steps, 90% at 0.1.",
    ),
    (
        trials_at(r0_05=0.6, r0_07=-math.inf, r0_1=0.1), 0.05,
        "rho = 0.05 is the largest that learns, below the 0.1 that would follow from it: of what the base learns in 50 "
        "steps, 60% at 0.05, 0% at 0.07.",
    ),
    (trials_at(r0_05=0.2, r0_1=0.1), 0.05, "even rho = 0.05 keeps less than 50%"),
]  # fmt: skip


@pytest.mark.parametrize(("trials", "rho", "words"), VERDICTS, ids=[words for *_, words in VERDICTS])
def test_the_sentence_says_why(trials, rho, words):
    found = _verdict(0.1, 0.13, looks(0.9), trials, 50, 0.5)
    assert found.rho == rho and words in found.why and found.why.count("\n") == 0


def test_where_the_smallest_radius_is_too_large_it_is_not_said_to_be_below_anything():
    said = [
        _verdict(0.1, 0.1, looks(0.5, 0.4), trials, steps, 0.5).why
        for trials, steps in (((), 0), (trials_at(r0_1=0.9), 50))
    ]
    bend = "the ascent is beyond the linear regime at rho = 0.1, the smallest looked at: cos(g, g~) = 0.5"
    assert said[0] == f"{bend}."
    assert said[1].startswith(f"{bend}; rho = 0.1 is the smallest, and learns: of what the base learns in 50 steps")


def test_radii_that_few_bits_cannot_hold_are_no_warning_of_the_search(recwarn):
    model = torch.nn.Linear(3, 2).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    steppe.find_rho(model, optimizer, lambda x: model(x).float().square().mean(), [batch], trial=0, looks=1)
    assert not [each for each in recwarn if "rounding" in str(each.message)]


@pytest.mark.parametrize(("steps", "told"), [(3, True), (19, True), (20, False)])
def test_few_steps_come_with_a_caution(steps, told):
    for trials, *_ in VERDICTS[1:]:
        why = _verdict(0.1, 0.13, looks(0.9), trials, steps, 0.5).why
        assert why.endswith("So few steps tell little: take this for a guess, or give trial=20 or more.") == told


def test_where_the_curves_radius_does_not_learn_the_first_below_that_does_is_taken():
    """Steep walls: the ascent is straight in one dimension, and from its end a step leaps across."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    walls = lambda _: torch.cosh(3 * model.weight).sum()  # noqa: E731
    found = steppe.find_rho(model, optimizer, walls, [None], radii=(0.05, 0.1, 0.15, 0.3, 0.5), trial=20, looks=1)
    assert [t.rho for t in found.trials] == [0.15, 0.3, 0.5] and found.rho == 0.15 < found.linear


def test_the_curve_alone_needs_no_trials():
    found = _verdict(0.1, 0.13, looks(0.9), (), 0, 0.5)
    assert found.rho == 0.1 and "learned nothing" not in found.why and found.why.startswith("the ascent is linear up")


def test_findings_go_into_json_and_a_picture():
    found = on_the_bowl(radii=(0.1, 0.2, 0.3), trial=3)
    assert json.loads(json.dumps(found.as_dict()))["rho"] == found.rho
    axes = found.plot()
    assert axes.get_xscale() == "log" and len(axes.get_lines()) == 4
    assert found.plot(axes) is axes and len(axes.get_lines()) == 8
