"""The benchmark's own parts: other people's steps do what they are measured for, and its page shows what was found."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

import steppe
from steppe._command.choices import parse, parse_all
from steppe.bench.contender import base, ours
from steppe.bench.measure import Request, makers, measure
from steppe.bench.subject import Subject

ROOT = Path(__file__).parents[2]
SUBJECT = Subject("tests.bench.tiny:problem", 8)


@pytest.fixture(scope="module")
def peers():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("step_peers")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def phases(peers):
    return importlib.import_module("step_phases")


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("cost_page", ROOT / "docs" / "cost.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def after(maker, steps=4):
    problem = SUBJECT.make()
    one = maker(problem)
    for _ in range(steps):
        one.take(problem.batch)
    return torch.cat([p.detach().flatten() for p in problem.model.parameters()]), one


@pytest.mark.parametrize("name", ["peer_naive", "peer_sam"])
def test_the_peers_sam_is_sam_on_the_same_base(peers, name):
    if name != "peer_naive":
        pytest.importorskip("pytorch_optimizer", reason="an extra: pip install '.[oracles]'")
    theirs, one = after(peers.PEERS[name])
    mine, _ = after(lambda problem: ours(problem, parse("sam"), "sgd"))
    bare, _ = after(lambda problem: base(problem, "sgd"))
    torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(theirs, bare, rtol=1e-5, atol=1e-7)
    assert one.passes == {True: 2.0}


@pytest.mark.parametrize("name", ["peer_gsam", "peer_fsam"])
def test_other_peers_take_two_passes(peers, name):
    pytest.importorskip("pytorch_optimizer", reason="an extra: pip install '.[oracles]'")
    weights, one = after(peers.PEERS[name])
    assert one.passes == {True: 2.0} and one.share == 1.0 and weights.isfinite().all()


def test_the_peers_look_sam_is_placed_and_takes_two_passes_either_way(peers):
    pytest.importorskip("pytorch_optimizer", reason="an extra: pip install '.[oracles]'")
    problem = SUBJECT.make()
    one = peers.PEERS["peer_look_sam"](problem)
    for wanted in (True, False, False, True):
        one.place(wanted)
        one.take(problem.batch)
        assert one.ascended() is wanted
    assert one.passes == {True: 2.0, False: 2.0} and one.share == 0.2


def test_each_way_to_perturb_moves_the_weights_by_rho_and_back(phases):
    pytest.importorskip("pytorch_optimizer", reason="an extra: pip install '.[oracles]'")
    for way in phases.WAYS.values():
        problem = SUBJECT.make()
        perturb, restore = way(problem.model)
        before = [p.detach().clone() for p in problem.model.parameters()]
        problem.loss_of(problem.model, problem.batch).backward()
        perturb()
        moved = [p.detach() - b for p, b in zip(problem.model.parameters(), before, strict=True)]
        assert float(torch.stack([m.norm() for m in moved]).norm()) == pytest.approx(phases.RHO, rel=1e-4)
        problem.loss_of(problem.model, problem.batch).backward()
        restore()
        for p, b in zip(problem.model.parameters(), before, strict=True):
            torch.testing.assert_close(p.detach(), b, rtol=0, atol=1e-7)


def test_widths_count_bytes_and_compare_with_a_copy(phases):
    pytest.importorskip("pytorch_optimizer", reason="an extra: pip install '.[oracles]'")
    found = phases.width(48 * 1000, "cpu", torch.float32, 3)
    assert found["bytes"] == 48 * 1000 * 4 and found["copy_gb_per_s"] > 0
    assert set(found["ways"]) == set(phases.WAYS)
    assert all(row["ms"]["median"] > 0 and row["at_copy_rate"] > 0 for row in found["ways"].values())


def test_the_cases_of_a_gpu_run_in_small_on_the_cpu(phases):
    """The models, phases and dtype of the case for a GPU, shrunk."""
    subject = Subject("step_models:transformer_tiny", 2, dtype="bfloat16")
    record = measure(subject, makers(parse_all(["sam"]), "sgd"), Request(steps=1, memory=False))
    assert record["methods"]["sam"]["passes"] == 2
    assert phases.in_steps(Subject("step_models:transformer_tiny", 2), 2)["steppe"]["share_of_a_pass"]["median"] > 0


def test_the_page_shows_every_figure_that_was_measured(page, tmp_path, monkeypatch):
    record = measure(SUBJECT, makers(parse_all(["sam,rst,look_sam:k=5"]), "sgd"), Request(steps=2))
    record |= {"case": "resnet18_b128", "command": "python benchmarks/step_time.py resnet18_b128"}
    record["methods"]["sam"] |= {
        "busy_ratio": {"median": 2.0123, "low": 1.99, "high": 2.05},
        "time_ratio": {"median": 1.3, "low": 1.2, "high": 3.05},  # the wall clock of a busy machine
    }
    record["provenance"]["load_average"] = [7.5]
    share = {"median": 0.0075, "low": 0.007, "high": 0.008}
    record["phases"] = {"steppe": {"share_of_a_pass": share}}
    (tmp_path / "step_time_resnet18_b128.json").write_text(json.dumps(record))
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    text = page.page()
    assert "1.300" not in text and "ms a step" not in text, "no figure of a busy machine's wall clock"
    assert "| SAM | ≤ 2.04 | 2.000 | 2.012 (1.99 to 2.05) |" in text
    assert "0.75% (0.70% to 0.80%)" in text
    record["provenance"] |= {"load_average": [0.5], "device": "cuda"}
    (tmp_path / "step_time_resnet18_b128.json").write_text(json.dumps(record))
    assert "1.300 (1.20 to 3.05)" in page.page() and "ms a step" in page.page()
    assert "Not run yet: resnet18_b128_more" in text and "cuda_transformer100m" in text


def test_the_page_in_the_repository_is_that_of_the_files(page):
    assert (ROOT / "docs" / "cost.md").read_text() == page.page(), "run python docs/cost.py"


def test_what_is_said_of_looks_on_a_gpu_is_what_was_measured() -> None:
    paths = (ROOT / "benchmarks" / "results").glob("step_time_cuda_*.json")
    alone = [path for path in paths if path.stem.rpartition("_")[2] not in ("recorded", "row8", "graphs")]
    files = [json.loads(path.read_text()) for path in alone]
    times = {
        name: [file["methods"][name]["time_ratio"]["median"] for file in files if "methods" in file]
        for name in ("recommended", "look_sam:k=5", "msam")
    }
    models = json.loads((ROOT / "benchmarks" / "results" / "recorded_look.json").read_text())["models"]
    times["recommended"] += [each["look"]["waited_ms"] / each["base"]["waited_ms"] for each in models.values()]
    span = {name: f"{min(each):.1f} to {max(each):.1f}" for name, each in times.items()}
    said = " ".join((ROOT / "docs" / "choosing.md").read_text().split())
    assert f"takes {span['recommended']} times the base's" in said
    assert f"LookSAM {span['look_sam:k=5']}, MSAM {span['msam']}" in said
    docstring = " ".join((steppe.recommended.__doc__ or "").split())
    assert f"{span['recommended']} times" in docstring

    waited, row = (
        [each["recorded"][how] / each["base"][how] for each in models.values()] for how in ("waited_ms", "row_ms")
    )
    numbers = [f"{waited[0]:.2f}", f"{waited[1]:.2f}", f"{row[0]:.2f}", f"{row[1]:.2f}"]
    assert list(models) == ["resnet50", "vit_b16"]
    assert "took {} times on ResNet-50 and {} on ViT-B/16, in a row {} and {}".format(*numbers) in said
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "{} times the base's step on ResNet-50, {} on ViT-B/16".format(*numbers) in readme
    assert f"with ``cuda_graph`` {min(waited + row):.1f} to {max(waited + row):.1f} times" in docstring
