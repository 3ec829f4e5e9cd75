"""Records of scripts beside the same loops written by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compare.script import loops
from torch import nn

from steppe.compare.engine import script as engine
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import resolve
from steppe.compare.script.source import load

LOOPS = Path(loops.__file__)


def record(name: str, run: Run, tmp_path: Path, **flags):
    return engine.train(resolve({"script": f"{LOOPS}:{name}", "out": str(tmp_path), **flags}), run)


def by_hand(seed: int, count: int, rho: float | None = None) -> list[dict]:
    """The loop of `epochs`, with loss.backward() or SAM's two passes written out; figures of every epoch."""
    torch.manual_seed(seed)
    model, (x, y), seen = loops.network(), loops.data(seed), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(count):
        for rows in torch.randperm(24).split(8):
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            if rho is not None:
                weights = list(model.parameters())
                before = [w.detach().clone() for w in weights]
                norm = torch.sqrt(sum(w.grad.square().sum() for w in weights))
                with torch.no_grad():
                    for w in weights:
                        w.add_(w.grad * rho / norm)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                with torch.no_grad():
                    for w, old in zip(weights, before, strict=True):
                        w.copy_(old)
            optimizer.step()
            optimizer.zero_grad()
        seen.append({k: {n: float(v) for n, v in part.items()} for k, part in loops.figures(model).items()})
    return seen


@pytest.mark.parametrize(("run", "count"), [(Run("base", None, 3), 3), (Run("base", None, 3, "double"), 6)])
def test_the_base_is_the_plain_loop_bit_for_bit(run, count, tmp_path):
    made, hand = record("epochs", run, tmp_path), by_hand(3, count)
    assert made["curve"]["val_accuracy"] == [each["val"]["accuracy"] for each in hand]
    assert [made[f"test_{name}"] for name in ("accuracy", "nll")] == list(hand[-1]["test"].values())
    assert made["passes_per_step"] == 1.0 and made["ascended_share"] == 0.0
    assert (made["steps"], made["backwards"], made["epochs"]) == (3 * count, 3 * count, count)
    assert made["metric"]["name"] == "accuracy" and made["diverged"] is None


def test_a_method_is_the_loop_by_hand(tmp_path):
    made, hand = record("epochs", Run("sam", 0.3, 3), tmp_path), by_hand(3, 3, rho=0.3)
    assert made["test_nll"] == pytest.approx(hand[-1]["test"]["nll"], abs=1e-12)
    assert made["passes_per_step"] == 2.0 and made["ascended_share"] == 1.0 and made["rho"] == 0.3
    assert made["test_nll"] != by_hand(3, 3)[-1]["test"]["nll"]


@pytest.mark.parametrize(
    ("name", "method", "passes"),
    [
        ("epochs", "sam:samples=2", 1 + 2 / 8), ("epochs", "look_sam:k=3", 1 + 1 / 3), ("epochs", "msam", 1.0),
        ("pieces", "sam", 2.0), ("phases", "sam", 2.0), ("each_sample", "esam", 1 + 1 / 3 + 0.5), ("once", "sam", 2.0),
        ("adapters", "sam", 2.0), ("adapters", "nbar", 1.0),
        ("pieces", "sam:samples=2", 1 + 2 / 8),
    ],
)  # fmt: skip
def test_passes_are_counted_by_what_each_was_given(name, method, passes, tmp_path):
    made = record(name, Run(method, 0.05, 0), tmp_path, metric="nll")
    assert made["passes_per_step"] == pytest.approx(passes)


def test_the_base_has_every_call_of_a_method(tmp_path):
    torch.manual_seed(0)
    made = record("phases", Run("base", None, 0), tmp_path)
    assert made["passes_per_step"] == 1.0 and made["steps"] == 4
    torch.manual_seed(0)
    model, (x, y) = loops.network(), loops.data(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert made["test_nll"] == float(loops.figures(model)["test"]["nll"])


def test_early_stopping_is_the_earliest_best_look_on_validation(tmp_path):
    made = record("scripted", Run("base", None, 0), tmp_path)
    assert made["early"] == {"epoch": 2, "val_accuracy": 0.9, "test_accuracy": 0.5}
    assert (made["val_accuracy"], made["test_accuracy"]) == (0.4, 0.2)
    assert made["curve"]["test_accuracy"] == [0.3, 0.5, 0.8, 0.6, 0.2] and len(made["curve"]["train_loss"]) == 5


def test_what_is_returned_once_has_no_early_stopping(tmp_path):
    made = record("once", Run("base", None, 0), tmp_path, metric="nll")
    assert made["early"] is None and made["averaged"] is None and made["metric"]["higher"] is False
    assert record("once", Run("base", None, 0), tmp_path)["metric"]["name"] == "score"


def test_averages_of_the_weights_are_measured_by_the_script_s_own_function(tmp_path):
    made = record("measured", Run("base", None, 3), tmp_path)
    torch.manual_seed(3)
    model, (x, y) = loops.network(), loops.data(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ema, kept = None, []
    for _ in range(30):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.append({name: each.clone() for name, each in model.state_dict().items()})
        ema = {name: each + (ema[name] - each) * 2 / 3 for name, each in kept[-1].items()} if ema else kept[-1]
    assert made["test_nll"] == pytest.approx(float(loops.figures(model)["test"]["nll"]), abs=1e-12)
    latest = {name: sum(each[name] for each in kept[17::3]) / 5 for name in ema}
    for name, state in (("averaged", ema), ("lawa", latest)):
        model.load_state_dict(state)
        assert made[name]["test_nll"] == pytest.approx(float(loops.figures(model)["test"]["nll"]), abs=1e-9)
        assert made[name]["test_nll"] != pytest.approx(made["test_nll"], abs=1e-5)


def test_the_global_generators_follow_the_seed(tmp_path):
    """`once` draws its weights without seeding anything."""
    first, again, other = (record("once", Run("base", None, s), tmp_path, metric="nll")["val_nll"] for s in (0, 0, 1))
    assert first == again != other


def lengths(file: Path, **flags: Any) -> list[float]:
    """What a script is given in all variants of the base."""
    spec = resolve({"script": f"{file}:train", **flags})
    return [engine.arguments(load(spec.script), spec, Run("base", None, 0, each))["length"] for each in spec.variants]


@pytest.mark.parametrize("length", ["length=1.0", "length: float = 1", "length: 'int | float' = 1"])
def test_a_length_that_is_a_float_may_be_a_half(length, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(f"def train(sharpen, seed, {length}):\n    return 1.0\n")
    assert lengths(file) == [2, 1, 0.5] and lengths(file, half=False) == [2, 1]
    kept = {"script": f"{file}:train", "half": True, "lr": 0.1}
    assert engine.shown(kept) == {"script": f"{file}:train", "half": True}


@pytest.mark.parametrize("length", ["length", "length=1", "length: int = 1"])
def test_any_other_length_is_a_whole_number(length, tmp_path):
    """`range(epochs * length)` is what people write."""
    file = tmp_path / "mine.py"
    file.write_text(f"def train(sharpen, seed, {length}):\n    return 1.0\n")
    found = lengths(file)
    assert list(map(type, found)) == [int, int] and found == [2, 1]
    with pytest.raises(ValueError, match="leave 'half' out"):
        lengths(file, half=False)
    assert engine.shown({"script": f"{file}:train", "half": True}) == {"script": f"{file}:train"}


def test_learning_rates_and_settings_go_to_arguments_by_name(tmp_path):
    made = record("epochs", Run("base", None, 0, lr=0.5), tmp_path, settings="count=1,batch=12")
    assert made["steps"] == 2 and made["lr"] == 0.5
    assert made["val_nll"] != record("epochs", Run("base", None, 0), tmp_path, settings="count=1,batch=12")["val_nll"]


def test_a_run_that_blows_up_is_a_diverged_record(tmp_path):
    assert "training loss rose" in record("epochs", Run("base", None, 0, lr=1e200), tmp_path)["diverged"]


def test_what_a_script_prints_is_in_a_file_of_its_run(tmp_path, capsys):
    (tmp_path / "says.py").write_text(
        "import sys\nsys.path.insert(0, '.')\nfrom tests.compare.script import loops\n\n\n"
        "def train(sharpen, seed):\n    print('hello')\n    return loops.once(sharpen, seed)\n"
    )
    engine.train(resolve({"script": f"{tmp_path}/says.py:train", "out": str(tmp_path)}), Run("base", None, 4))
    (file,) = (tmp_path / "printed").iterdir()
    assert file.read_text() == "hello\n" and file.name.startswith("base-seed4-")
    assert "hello" not in capsys.readouterr().out


def test_a_refusal_of_the_method_bears_the_scripts_line(tmp_path):
    with pytest.raises(engine.SaidError, match=r"loops.py:\d+: ValueError: the loss has shape \(24,\); expected one"):
        record("each_sample_wrong", Run("sam", 0.1, 0), tmp_path)
