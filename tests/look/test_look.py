"""`steppe look` on a comparison, a fine-tuning and a function of one's own; what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from tests.compare import studies

from steppe.cli import main

pytest.importorskip("hessian_eigenthings")

QUICK = ["--steps", "3", "--probes", "3", "--runs", "1", "--points", "3", "--radii", "0.05,0.1", "--draws", "2"]


def look(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    code = main(["look", *words])
    told = capsys.readouterr()
    return code, told.out, told.err


def record(folder: Path) -> dict:
    return json.loads((folder / "look.json").read_text())


def pictures(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png") if path.stat().st_size > 5000}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    assert studies.complete(out).returncode == 0
    return out


def test_a_comparisons_base_and_best_method(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, out, err = look(capsys, str(study), "--out", str(tmp_path), *QUICK)
    assert code == 0, err
    found = record(tmp_path)
    base, method = found["models"]
    assert base == "base" and method in ("SAM", "RST, p = 0.5", "RST")
    assert all(parts.keys() == {"curvature", "sharpness"} for parts in found["models"].values())
    assert [point["name"] for point in found["plane"]["points"]] == ["base", "middle", "model"]
    assert found["plane"]["points"][0]["loss"] == pytest.approx(found["models"]["base"]["curvature"]["loss"], rel=1e-5)
    assert found["plane"]["points"][2]["loss"] == pytest.approx(found["models"][method]["curvature"]["loss"], rel=1e-5)
    assert pictures(tmp_path) == {"curvature.png", "sharpness.png", "plane.png"}
    assert err.count("again") == 2 and err.splitlines()[2:] == [
        "a plane of 3 x 3 points",
        *(f"{part} of {name}" for name in (base, method) for part in ("curvature", "sharpness")),
    ]
    assert "largest eigenvalue" in out


def test_another_method_and_seed(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = (str(study), "--out", str(tmp_path), "--method", "rst", "--seed", "1", "--parts", "sharpness", "--json")
    code, out, err = look(capsys, *words)
    assert code == 0, err
    assert [name.split(",")[0] for name in json.loads(out)["models"]] == ["base", "RST"]
    assert "seed 1" in err and json.loads(out) == record(tmp_path)


def test_a_run_that_the_study_lacks(study: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, err = look(capsys, str(study), "--method", "asam")
    assert code == 2
    assert "has no finished run of asam and the base with seed 0; it has rst, sam with seeds 0, 1, 2" in err


def test_a_run_that_comes_out_otherwise(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from steppe.look import compared

    monkeypatch.setattr(compared.measure, "metrics", lambda *_: {"accuracy": 0.123})
    code, _, err = look(capsys, str(study), "--out", str(tmp_path))
    assert code == 2 and "trained again its validation accuracy is 0.123 and not" in err


def test_a_study_of_other_settings_than_its_hash(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kept = json.loads((study / "spec.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps(kept | {"lr": 0.123}))
    code, _, err = look(capsys, str(tmp_path))
    assert code == 2 and "data or code are not those of the study any more" in err


def test_a_study_of_a_script(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    kept = json.loads((study / "spec.json").read_text())
    (tmp_path / "spec.json").write_text(json.dumps(kept | {"script": "train.py:train"}))
    code, _, err = look(capsys, str(tmp_path))
    assert code == 2 and "compares a script, whose models are its own" in err


def test_a_fine_tuning_with_its_pairs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("peft")
    from tests.finetune import cases

    cases.run(tmp_path, method="base")
    code, _, err = look(
        capsys, str(tmp_path / "out"), "--out", str(tmp_path / "look"), "--examples", "8", "--batch", "4", *QUICK
    )
    assert code == 0, err
    (parts,) = record(tmp_path / "look")["models"].values()
    assert parts.keys() == {"curvature", "sharpness", "balance"}
    assert all(pair["x"] > 0 for pair in parts["balance"]["pairs"])
    assert pictures(tmp_path / "look") == {"curvature.png", "sharpness.png", "plane.png", "balance.png"}


@pytest.mark.parametrize("body", ["bert", "llama"])
def test_a_fine_tuning_by_smoothed_labels_is_looked_at_by_their_loss(body: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tests.finetune import cases

    from steppe.look.finetuned import of_run
    from steppe.look.request import Request

    cases.run(tmp_path, body, {"label_smoothing_factor": 0.3})
    (subject,) = of_run(tmp_path / "out", Request("", examples=8, batch=4)).each
    for weight in subject.model.parameters():
        weight.data.mul_(5)  # of outputs near zero both losses are one
    for batch in subject.batches:
        logits, labels = subject.model(**batch).logits, batch["labels"]
        if body == "llama":
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        true = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.3)
        torch.testing.assert_close(subject.loss_of(batch), true)
        assert not torch.isclose(true, subject.model(**batch).loss, rtol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_language_model_is_looked_at_by_its_loss_per_token(smoothing: float, tmp_path: Path) -> None:
    """Of batches with other numbers of tokens the figures are those of one batch of all of them."""
    pytest.importorskip("peft")
    from tests.finetune import cases

    from steppe import diagnostics
    from steppe.look.finetuned import of_run
    from steppe.look.request import Request

    cases.run(tmp_path, "llama", {"label_smoothing_factor": smoothing})
    (parted,), (whole,) = (of_run(tmp_path / "out", Request("", examples=8, batch=size)).each for size in (1, 8))
    counts = [parted.weigh(batch) for batch in parted.batches]
    assert len(set(counts)) > 1 and sum(counts) == whole.weigh(whole.batches[0])
    found = []
    for each in (parted, whole):
        for i, weight in enumerate(each.model.parameters()):
            weight.data = 5 * weight.data.double() + 1e-3 * i  # in float32 the comparison would be rough
        about = each.model, each.loss_of, each.batches
        curve = diagnostics.curvature(*about, steps=4, probes=4, runs=0, weigh=each.weigh)
        (rise,) = diagnostics.m_sharpness(*about, (0.1,), draws=2, weigh=each.weigh).rises
        plane = diagnostics.loss_plane(*about, points=2, weigh=each.weigh)
        spectrum = curve.loss, curve.lambda_max.value, curve.trace.value
        found.append([*spectrum, rise.worst, rise.average, plane.loss[0][0]])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    means = [parted.loss_of(batch).item() for batch in parted.batches]
    assert sum(means) / len(means) != pytest.approx(found[0][0], rel=1e-4)


def test_a_fine_tuning_on_a_file_with_one_class_after_the_other_is_looked_at_on_both(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from tests.finetune import cases

    from steppe.look.finetuned import of_run
    from steppe.look.request import Request

    given = cases.flags(tmp_path)
    lines = sorted(Path(given["data"]).read_text().splitlines())
    Path(given["data"]).write_text("\n".join(lines))
    cases.finetune(cases.resolve(given, cases.FEW | {"max_steps": 1}))
    (subject,) = of_run(tmp_path / "out", Request("", examples=8, batch=8)).each
    assert len(subject.batches) == 1 and set(subject.batches[0]["labels"].tolist()) == {0, 1}


def test_a_function_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, err = look(capsys, "tests.look.mine:subject", "--out", str(tmp_path), "--parts", "plane", "--points", "3")
    assert code == 0, err
    assert len(record(tmp_path)["plane"]["points"]) == 3 and pictures(tmp_path) == {"plane.png"}


def test_without_out_the_folder_is_named_after_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one does not write over what it found."""
    monkeypatch.chdir(tmp_path)
    for radius in ("0.1", "0.2"):
        code, _, err = look(capsys, "tests.look.mine:subject", "--parts", "sharpness", "--radii", radius)
        assert code == 0, err
    begin = "tests.look.mine-subject-parts-sharpness-radii"
    assert {path.name for path in (tmp_path / "results" / "look").iterdir()} == {f"{begin}-0.1", f"{begin}-0.2"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere is neither the folder of a comparison (spec.json) nor of a fine-tuning (result.json)"),
        (["tests.look.mine:only_a_model"], "returned Sequential; expected (model, loss_of, batches)"),
        (["tests.look.mine:loss_and_batches_changed"], "returned tuple; expected (model, loss_of, batches)"),
        (["tests.look.mine:adapters_of_its_own", "--parts", "balance"], "the model holds no LoRA layer"),
        (["tests.look.mine:subjekt"], "has no function 'subjekt'; did you mean 'subject'?"),
        (["tests.look.mine:subject", "--seed", "1"], "--method and --seed choose a run of a comparison"),
        (["tests.look.mine:subject", "--parts", "curve"], "parts='curve' was given; expected one of 'curvature'"),
        (["tests.look.mine:subject", "--radii", "0"], "radii=0.0 was given"),
        (["tests.look.mine:subject", "--examples", "0"], "examples=0 was given; expected a whole number of at least 1"),
        (["tests.look.mine:subject", "--out", __file__], "is a file; name a folder"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(words: list[str], sentence: str, capsys: pytest.CaptureFixture) -> None:
    code, out, err = look(capsys, *words)
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert sentence in err


def test_a_loss_for_each_example_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    code, _, err = look(capsys, "tests.look.mine:of_each", "--out", str(tmp_path), *QUICK)
    assert code == 2 and err.splitlines()[-1].startswith("steppe: loss_of returned a tensor of shape (8,); expected")


def test_the_table_says_how_many_samples_a_group_has_and_how_sure_the_average_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Batches of 8, of which no groups of the 64 of the default can be cut."""
    words = ("tests.look.mine:adapters_of_its_own", "--out", str(tmp_path), "--parts", "sharpness,balance")
    code, out, err = look(capsys, *words, "--radii", "0.1")
    assert code == 0, err
    found = record(tmp_path)["models"]["model"]
    (rise,) = found["sharpness"]["rises"]
    assert found.keys() == {"sharpness"} and found["sharpness"]["m"] == 8 and "worst of 8 " in out
    assert f"{rise['average']:.3g} ± {rise['error']:.1g}" in out


def test_where_biases_alone_are_trained_there_is_no_plane(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ("tests.look.mine:of_biases", "--out", str(tmp_path), *QUICK)
    code, _, err = look(capsys, *words)
    assert code == 0 and "no plane: the trained weights are vectors only, or zero" in err
    assert record(tmp_path)["plane"] is None and pictures(tmp_path) == {"curvature.png", "sharpness.png"}
    code, _, err = look(capsys, *words, "--parts", "plane")
    assert code == 2 and "steppe: the trained weights are vectors only" in err


def test_few_products_are_shown_as_what_they_tell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """No error of a trace by one sample, and no picture of a density that was not asked for."""
    words = ("tests.look.mine:subject", "--out", str(tmp_path), "--parts", "curvature", "--probes", "3", "--runs", "0")
    code, out, err = look(capsys, *words)
    assert code == 0, err
    (row,) = (line for line in out.splitlines() if "trace" in line)
    assert "nan" not in row and "±" not in row and pictures(tmp_path) == set()


def test_a_base_of_another_shape_is_refused_at_once(capsys: pytest.CaptureFixture) -> None:
    code, _, err = look(capsys, "tests.look.mine:beside_another", *QUICK)
    assert code == 2 and "curvature" not in err and "has the shape (2, 5) there" in err


def test_the_page_has_the_kept_figures() -> None:
    root = Path(__file__).parents[2]
    kept = json.loads((root / "benchmarks" / "results" / "look_ett96.json").read_text())
    text = (root / "docs" / "look.md").read_text()
    assert f"    {kept['command']}\n" in text
    base, look = kept["models"].values()
    tops, losses = ([each["curvature"][name] for each in (base, look)] for name in ("lambda_max", "loss"))
    assert "| largest eigenvalue | {:.4g} | {:.4g} |".format(*(each["value"] for each in tops)) in text
    assert "| training loss | {:.4f} | {:.4f} |".format(*losses) in text
    traces = [each["curvature"]["trace"] for each in (base, look)]
    shown = [f"{each['value']:.1f} ± {each['error']:.1f}" for each in traces]
    assert f"| trace | {shown[0]} | {shown[1]} |" in text
