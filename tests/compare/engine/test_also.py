"""What --also measures, beside loops written by hand."""

import copy
import io
import math

import pytest
import torch
from rich.console import Console
from tests.compare import tiny
from torch import nn

from steppe.compare import Split, Task
from steppe.compare.analysis.summary import summarise
from steppe.compare.data import also as names
from steppe.compare.engine import also, measure, run, study
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve
from steppe.compare.report import also as shown
from steppe.compare.report import page


def by_hand(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Channel by channel and number by number."""
    levels, out = 2 ** (bits - 1) - 1, weight.clone()
    for channel in range(len(weight)):
        largest = max(abs(float(w)) for w in weight[channel].flatten())
        for index, w in enumerate(weight[channel].flatten().tolist()):
            step = 0.0 if largest == 0 else largest / levels
            out[channel].view(-1)[index] = 0.0 if step == 0 else step * round(w / step)
    return out


@pytest.mark.parametrize("bits", names.BITS)
@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 3, 3)])
def test_weights_are_rounded_channel_by_channel(bits, shape):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    weight[1] = 0.0
    found = also.quantized(weight, bits)
    assert torch.allclose(found, by_hand(weight, bits), atol=1e-12, rtol=0)
    assert all(len(channel.unique()) <= 2**bits - 1 for channel in found)
    assert torch.equal(found.flatten(1).abs().amax(1), weight.flatten(1).abs().amax(1)), "the largest stays"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2)).double()


def test_what_is_rounded_comes_back_bit_for_bit_and_the_rest_is_not_touched():
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), also.rounded(model, 3):
        inside = model.state_dict()
        moved = {name for name in before if not torch.equal(inside[name], before[name])}
        assert moved == {"0.weight", "3.weight"}, "neither biases nor normalisation"
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def task(seed: int = 0) -> Task:
    parts = (Split(s.x.double(), s.y) for s in (tiny.split(20, seed), tiny.split(20, 1), tiny.split(30, 2)))
    return Task("tiny", *parts, 2)


def test_the_figures_are_those_of_a_model_rounded_by_hand():
    model, data = network().eval(), task()
    found = also.figures(model, data, ["quantized"], 0)
    for bits in names.BITS:
        other = copy.deepcopy(model)
        with torch.no_grad():
            for layer in (other[0], other[3]):
                layer.weight.copy_(by_hand(layer.weight, bits))
            right = (other(data.test.x).argmax(1) == data.test.y).double().mean()
        assert found[f"bits_{bits}"] == float(right)


def test_the_calibration_error_is_that_of_fifteen_bins():
    model, data = network().eval(), task()
    (found,) = also.figures(model, data, ["calibration"], 0).values()
    with torch.no_grad():
        sure, guess = model(data.test.x).softmax(1).max(1)
    total = 0.0
    for low in range(15):
        inside = [i for i, p in enumerate(sure.tolist()) if low / 15 < p <= (low + 1) / 15]
        if inside:
            right = sum(int(guess[i] == data.test.y[i]) for i in inside) / len(inside)
            total += len(inside) / len(sure) * abs(right - sum(float(sure[i]) for i in inside) / len(inside))
    assert found == pytest.approx(total, abs=1e-6)  # torchmetrics sums in float32


def test_the_noise_is_as_large_as_is_said_and_the_same_for_the_same_seed():
    data = task()
    numbers = [float(v) for v in data.train.x.flatten()]
    mean = sum(numbers) / len(numbers)
    sigma = math.sqrt(sum((v - mean) ** 2 for v in numbers) / len(numbers))
    assert names.deviation(data.train.x) == pytest.approx(sigma, rel=1e-12)
    noise = also.noisy(data, 0.3, 5).x - data.test.x
    drawn = torch.randn(data.test.x.shape, generator=also.generator(also._NOISE_SEED, 5, 300), dtype=torch.float64)
    assert torch.allclose(noise, 0.3 * sigma * drawn, atol=1e-12, rtol=0)
    assert abs(float(noise.std()) / (0.3 * sigma) - 1) < 0.05
    assert not torch.equal(also.noisy(data, 0.3, 6).x, also.noisy(data, 0.3, 5).x)
    found = also.figures(network().eval(), data, ["noise"], 5)
    assert list(found) == ["noise_0.1", "noise_0.3"]
    assert found["noise_0.3"] == measure.accuracy(network().eval(), also.noisy(data, 0.3, 5))


def test_masks_and_tokens_get_no_noise():
    x = {"image": torch.zeros(4, 3), "mask": torch.ones(4, 3, dtype=torch.long)}
    train = Split({**x, "image": torch.randn(4, 3)}, torch.zeros(4).long())
    data = Task("dict", train, *[Split(x, torch.zeros(4).long())] * 2, 2)
    found = also.noisy(data, 0.1, 0).x
    assert torch.equal(found["mask"], x["mask"]) and not torch.equal(found["image"], x["image"])


def settings(out, **flags):
    flags = {"methods": ["sam"], "seeds": 2, "rho": 0.1, "epochs": 2, **flags}
    return resolve({"task": "tests.compare.tiny:task", "out": str(out), **flags})


def test_a_study_keeps_them_and_shows_them_with_intervals(tmp_path):
    spec = settings(tmp_path, also="calibration,quantized,noise")
    plan = study.check(spec)
    records = plan.records({id_: run.train(spec, each) for id_, each in plan.needed({}).items()})
    assert all(list(r["also"]) == ["ece", "bits_8", "bits_4", "bits_3", "noise_0.1", "noise_0.3"] for r in records)
    summary = summarise(records, None, study.shown(plan))
    rows = {(row["label"]): row["figures"] for row in summary["also"]["rows"]}
    by_seed = {r["seed"]: r["also"] for r in records if r["method"] == "sam"}
    base = {r["seed"]: r["also"] for r in records if (r["method"], r["variant"]) == ("base", "plain")}
    for name, sign in (("bits_3", 1), ("ece", -1)):
        figure = rows["SAM"][name]
        assert figure["mean"] == pytest.approx(sum(each[name] for each in by_seed.values()) / 2) and figure["n"] == 2
        gained = sum(sign * (by_seed[s][name] - base[s][name]) for s in base) / 2
        assert figure["delta"]["mean"] == pytest.approx(gained), "better is above zero"
    assert rows["base"]["ece"]["delta"] is None
    Console(width=140, file=(written := io.StringIO())).print(shown.table(summary))
    said = written.getvalue()
    assert "calibration" in said and "3 bits" in said and "SAM" in said
    html = page.html(summary, records, None)
    assert "4 bits" in html and "a scale for each output channel" in html


def test_they_belong_to_the_study_and_are_not_there_unasked(tmp_path):
    plain = settings(tmp_path)
    assert "also" not in run.train(plain, Run("base", None, 0))
    assert plain.hash() != settings(tmp_path, also="noise").hash()
    summary = summarise([], None, {})
    assert "also" not in summary and shown.table(summary) is None


def numbers_task(seed: int) -> Task:
    made = tiny.task(seed)
    parts = (Split(s.x, s.x.flatten(1)[:, 0]) for s in (made.train, made.val, made.test))
    return Task("numbers", *parts, recipe=made.recipe, loss="mse")


def tokens_task(seed: int) -> Task:
    made = tiny.task(seed)
    parts = (Split((s.x > 0).long(), s.y) for s in (made.train, made.val, made.test))
    return Task("tokens", *parts, 2, made.recipe)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"also": "calibrated"}, "also must be calibration, quantized or noise, or several of them"),
        ({"also": "calibration", "task": "tests.compare.engine.test_also:numbers_task"}, "of numbers are numbers"),
        ({"also": "noise", "task": "tests.compare.engine.test_also:tokens_task"}, "those of tokens are tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(flags, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        study.check(settings(tmp_path, **flags))


def test_numbers_have_rounded_weights_and_noise(tmp_path):
    spec = settings(tmp_path, also="quantized,noise", task="tests.compare.engine.test_also:numbers_task")
    study.check(spec)
    found = run.train(spec, Run("base", None, 0))
    assert set(found["also"]) == {"bits_8", "bits_4", "bits_3", "noise_0.1", "noise_0.3"}
    assert found["also"]["bits_8"] == pytest.approx(found["test_mse"], rel=0.05)
    assert found["also"]["bits_8"] != found["test_mse"], "and yet rounded"
    assert abs(found["also"]["bits_3"] - found["test_mse"]) > abs(found["also"]["bits_8"] - found["test_mse"])
