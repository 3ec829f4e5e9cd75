"""A text as bytes: windows by hand, no leak, a network that sees no later byte, and bad files in one sentence."""

from __future__ import annotations

import math

import pytest
import torch

from steppe.compare.data import language, models, sequence_models
from steppe.compare.engine import run
from steppe.compare.engine.measure import chunks, metrics
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve

TEXT = "".join(f"{i} sheep went over the bridge, and then {i % 7} more.\n" for i in range(40))


def write(folder, text: str = TEXT, name: str = "text.txt") -> str:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / name)


def fresh(place: str, context: int = 16, parts=(0.8, 0.1, 0.1), stride: int = 16):
    return language.task.__wrapped__("lm", place, context, parts, stride)


def test_windows_by_hand(tmp_path):
    made = fresh(write(tmp_path), stride=5)
    raw = list(TEXT.encode())
    train, val = round(0.8 * len(raw)), round(0.9 * len(raw))
    for part, first, end, stride in (("train", 0, train, 5), ("val", train, val, 16), ("test", val, len(raw), 16)):
        split = getattr(made, part)
        starts = list(range(first, end - 16, stride))
        assert len(split) == len(starts)
        taken = split.take(torch.arange(len(split)))
        assert taken.x.tolist() == [raw[at : at + 16] for at in starts]
        assert taken.y.tolist() == [raw[at + 1 : at + 17] for at in starts]


def test_the_test_part_changes_nothing_before_it(tmp_path):
    one = fresh(write(tmp_path))
    cut = round(0.9 * len(TEXT))
    other = fresh(write(tmp_path, TEXT[:cut] + "x" * (len(TEXT) - cut), "other.txt"))
    for part in ("train", "val"):
        assert torch.equal(getattr(one, part).y, getattr(other, part).y)
    assert not torch.equal(one.test.y, other.test.y)
    x = one.test.take(torch.arange(2)).x
    for name in ("byte frequencies", "5-gram counts"):
        assert torch.equal(one.rows[name](x), other.rows[name](x))


def test_no_byte_sees_a_later_one(tmp_path):
    made = fresh(write(tmp_path))
    model = models.build("gpt", made).eval()
    x = made.train.take(torch.arange(2)).x
    other = x.clone()
    other[:, 9:] = 7
    assert model(x).shape == (2, 16, 256)
    assert torch.allclose(model(x)[:, :9], model(other)[:, :9], atol=1e-6)
    assert not torch.allclose(model(x)[:, 9:], model(other)[:, 9:], atol=1e-3)


def test_scores_of_attention_depend_on_the_distance_alone():
    block = sequence_models._Block(12, 8, 2)
    query, key = (block.turned(torch.randn(1, 1, 1, 4).expand(1, 1, 12, 4))[0, 0] for _ in range(2))
    scores = query @ key.T
    for apart in (0, 1, 5):
        along = scores.diagonal(-apart)
        assert torch.allclose(along, along[0].expand_as(along), atol=1e-5)
    assert not torch.allclose(scores[5, 5], scores[5, 0])


def test_a_long_text_is_mostly_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "ENOUGH", 40)
    made = fresh(write(tmp_path), parts=None)
    assert [len(split.series) for split in (made.train, made.val, made.test)] == [len(TEXT) - 80, 40, 40]
    monkeypatch.setattr(language, "ENOUGH", len(TEXT))
    made = fresh(write(tmp_path, name="other.txt"), parts=None)
    assert [len(split.series) for split in (made.train, made.val)] == [round(0.8 * len(TEXT)), round(0.1 * len(TEXT))]


def test_bits_per_byte_by_hand(tmp_path):
    """The row of byte frequencies, counted once more than they are there, on the bytes that are asked for."""
    made = fresh(write(tmp_path))
    counts = [1] * 256
    for byte in made.train.series.tolist():
        counts[byte] += 1
    asked = made.test.take(torch.arange(len(made.test))).y.flatten().tolist()
    by_hand = -sum(math.log2(counts[byte] / sum(counts)) for byte in asked) / len(asked)
    assert run.untrained(made)["byte frequencies"]["test_bits_per_byte"] == pytest.approx(by_hand, rel=1e-6)
    assert made.measured[0].name == "bits_per_byte"


def test_large_outputs_go_in_small_pieces(tmp_path):
    made = fresh(write(tmp_path), stride=1)
    assert max(len(piece) for piece in chunks(made.train)) == 64
    assert max(len(piece) for piece in chunks(made.train.take(torch.arange(200)))) == 64
    model = models.build("gpt", made)
    assert metrics(model, made.test, made.measured, 256)["bits_per_byte"] > 4


def test_a_run_and_its_averaged_weights_have_figures(tmp_path):
    flags = {"task": f"lm:{write(tmp_path)}", "context": 16, "max_steps": 3, "sharpness_examples": 4, "device": "cpu"}
    record = run.train(resolve(flags), Run("sam", 0.05, 0))
    for figures in (record, record["early"], record["averaged"]):
        assert 0 < figures["test_bits_per_byte"] < 10


@pytest.mark.parametrize(
    ("text", "settings", "sentence"),
    [
        (b"", {}, "is empty"),
        (b"\n \n", {}, "is empty"),
        (b"text\0text" * 99, {}, "not a text file"),
        (b"\xff\xfe" * 99, {}, "is not UTF-8"),
        (TEXT[:150], {}, "the validation part has 15 bytes, fewer than a context of 16 and the byte after it"),
        (TEXT, {"context": 4000}, "the training part has"),
        (TEXT, {"parts": (0.95, 0.04, 0.005)}, "the test part has"),
        (TEXT, {"parts": (0.9, 0.1, 0.1)}, "add up to 1.1"),
        (TEXT, {"parts": (1e6, 10, 10)}, "bytes, and there are"),
    ],
    ids=range(9),
)
def test_a_bad_text_is_refused_in_one_sentence(tmp_path, text, settings, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        fresh(write(tmp_path, text), **settings)
    assert "\n" not in str(error.value)


def test_settings_of_a_study(tmp_path):
    place = write(tmp_path)
    spec = resolve({"task": f"lm:{place}", "context": 32})
    assert (spec.model, spec.context, spec.parts, spec.max_steps) == ("gpt", 32, None, 1200)
    assert resolve({"task": f"lm:{place}", "epochs": 4}).max_steps is None
    for key, value in (("labelled", 5), ("lookback", 5), ("target", "a")):
        with pytest.raises(ValueError, match=f"does not take '{key}'"):
            resolve({"task": f"lm:{place}", key: value})
    with pytest.raises(ValueError, match="neither a file|is not a file"):
        resolve({"task": "lm:nowhere.txt"})
    with pytest.raises(ValueError, match="give lm:FILE"):
        resolve({"task": "lm:"})
    with pytest.raises(ValueError, match="go with gpt"):
        models.build("mlp", fresh(place))
