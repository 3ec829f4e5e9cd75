import json
from pathlib import Path

import pytest
from rich.console import Console
from tests.finetune.cases import dialogues, run, sentences
from tests.text import tiny

from steppe.cli import main
from steppe.finetune import watch
from steppe.finetune.data import examples, tokens
from steppe.finetune.folder import DiskError, Folder, writing
from steppe.finetune.method import label, optimizer_of
from steppe.finetune.spec import resolve
from steppe.finetune.table import _bytes, _step, comparison, summary
from steppe.optim import AMSGrad
from steppe.text.models import classifier, tokenizer_of


def words(folder: Path, *more: str) -> list[str]:
    given = [
        "finetune",
        "--model",
        tiny.save(folder / "bert"),
        "--data",
        sentences(folder),
        "--out",
        str(folder / "out"),
    ]
    return [*given, "--max-steps", "4", "--set", "save_steps=2", *more]


def test_the_terminal_and_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path)) == 0
    printed = capsys.readouterr()
    assert "nBAR on 2 pairs" in printed.out and "accuracy" in printed.out and "mean |B|" in printed.out
    assert "4 steps" in printed.err and "[4/4] loss" in printed.err
    assert all(len(line) < 300 for line in printed.err.splitlines())
    assert main(words(tmp_path, "--overwrite", "--json", "--method", "sam")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((tmp_path / "out" / "result.json").read_text())
    assert json.loads(printed.out)["method"]["label"] == "LoRA-SAM"


@pytest.mark.parametrize("method", ["base", "sam"])
def test_a_loss_that_ran_away_is_told(tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--method", method, "--learning-rate", "1e30", "--optim", "sgd", "--max-grad-norm", "0"]
    assert main(words(tmp_path, *wild)) == 0
    assert capsys.readouterr().err.count("warning: the training diverged: its loss or weights are not finite") == 1
    assert json.loads((tmp_path / "out" / "result.json").read_text())["diverged"] is True
    assert main(words(tmp_path, "--overwrite", "--method", method)) == 0
    assert "diverged" not in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["diverged"] is False


def test_an_interrupted_command_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(watch.Lines):
        def step(self, done: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(watch, "on", Stop)
        assert main(words(tmp_path)) == 130
    assert "interrupted; the same command with --resume goes on" in capsys.readouterr().err
    assert main(words(tmp_path, "--resume")) == 0
    printed = capsys.readouterr()
    assert "4 steps, 2 of them done before" in printed.err and "resumed at step 2" in printed.out


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    console = Console(force_terminal=True, width=100, record=True, file=(tmp_path / "shown").open("w"))
    with watch.on(console) as shown:
        assert isinstance(shown, watch.Bar)
        shown.begin(10, 0)
        shown.step(5)
        shown.note(5, 10, 0.25)
        shown.say("a line")
    printed = console.export_text()
    assert "5/10" in printed and "loss 0.2500" in printed and "a line" in printed


def test_about_ten_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with watch.on(Console(width=80)) as shown:
        shown.begin(100, 40)
        for done in range(41, 101):
            shown.note(done, 100, 1.0)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "100 steps, 40 of them done before"
    assert printed[1] == "[50/100] loss 1.0000" and printed[-1] == "[100/100] loss 1.0000" and len(printed) == 7


def test_the_typical_step_leaves_the_first_ones_out() -> None:
    noted = watch.Watch(watch.Quiet())
    assert noted.typical is None
    noted.seconds = [9.0, 8.0, 1.0, 2.0, 3.0]
    assert noted.typical == 2.0
    noted.seconds = [9.0, 1.0]
    assert noted.typical == 5.0


@pytest.mark.parametrize(
    ("method", "full", "expected"),
    [
        ("base", False, "LoRA"), ("base", True, "full fine-tuning"), ("sam", False, "LoRA-SAM"), ("sam", True, "SAM"),
        ("nbar:mu=0.5", False, "nBAR (mu=0.5)"), ("obar", False, "oBAR"),
        ("look_sam:k=5", False, "LoRA-LookSAM (k=5)"),
    ],
)  # fmt: skip
def test_what_tables_call_a_method(method: str, full: bool, expected: str) -> None:
    assert label(method, full) == expected


def test_a_method_brings_its_papers_optimizer_with_the_trainers_rate(tmp_path: Path) -> None:
    model = classifier(tiny.save(tmp_path), 2, None, 0)[0]
    training = {"learning_rate": 3e-3, "weight_decay": 0.1}
    made = optimizer_of("adasam", model, training)
    assert isinstance(made, AMSGrad) and {g["lr"] for g in made.param_groups} == {3e-3}
    own = optimizer_of("adasam:lr=0.5", model, training)
    assert own is not None and {(g["lr"], g["weight_decay"]) for g in own.param_groups} == {(0.5, 0.1)}
    assert optimizer_of("sam", model, training) is None and optimizer_of("base", model, training) is None


def test_units() -> None:
    assert (_bytes(1.5e9), _bytes(2e6), _bytes(12)) == ("1.5 GB", "2 MB", "12 bytes")
    assert (_step(0.0123), _step(2.5), _step(None)) == ("12.3 ms", "2.50 s", "-")


@pytest.mark.parametrize(("width", "last"), [(100, "|B|"), (60, "÷ LoRA"), (40, "%")])
def test_the_example_keeps_its_figures_where_space_is_short(width: int, last: str, tmp_path: Path) -> None:
    row = {"label": "LoRA-SAM (rho=0.05)", "passes": 2.0, "time": 1.98, "balancedness": 1.363}
    row |= {"accuracy": {"mean": 0.6837, "ci95": 0.0759}, "gain": {"mean": 0.0189, "ci95": 0.0654}}
    console = Console(width=width, record=True, file=(tmp_path / "shown").open("w"))
    console.print(comparison({"rows": [row], "legend": "", "verdict": "", "next": ""}, width))
    printed = console.export_text()
    assert "…" not in printed and "LoRA-SAM (rho=0.05)" in printed and "68.37 ± 7.59" in printed
    assert ("1.98" in printed, "1.363" in printed) == (width >= 60, width >= 100)
    assert printed.splitlines()[2].rstrip().endswith(last)


def test_the_summary_of_a_language_model(tmp_path: Path) -> None:
    console = Console(width=200, record=True, file=(tmp_path / "shown").open("w"))
    console.print(summary(run(tmp_path, "gpt2", method="base", training={"max_steps": 2}, max_length=6)))
    printed = console.export_text()
    assert "perplexity" in printed and "of them cut to 6 tokens" in printed
    assert "held out of the training data, 1 of them cut" in printed


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    settings = resolve({"model": tiny.save(tmp_path), "data": sentences(tmp_path), "max_length": 5, "held_out": 0.5})
    found = examples(settings)
    model, tokenizer = classifier(settings.model, 2, None, 0)
    made = tokens(settings, found, model, tokenizer)
    long = [text for text in found.train.texts if len(tokenizer(text)["input_ids"]) > 5]
    assert 0 < made.cut == len(long) < len(made.train)
    assert 0 < made.test_cut == sum(len(tokenizer(text)["input_ids"]) > 5 for text in found.test.texts)
    assert max(len(row["input_ids"]) for row in made.train) == made.length == 5
    whole = [len(tokenizer(text)["input_ids"]) for text in (*found.train.texts, *found.test.texts)]
    note, copies = made.notes
    assert note.startswith(f"{made.cut + made.test_cut} of {len(whole)} texts are longer than 5 tokens and cut; ")
    assert note.endswith(f"--max-length {max(whole)} takes them whole.")
    assert copies.startswith("10 of the 10 test examples (100 %) have inputs that are among those for training")


def test_the_default_length_is_what_the_model_takes(tmp_path: Path) -> None:
    settings = resolve({"model": tiny.save(tmp_path, "gpt2"), "data": dialogues(tmp_path), "task": "causal-lm"})
    found = examples(settings)
    assert settings.length == 512
    model = tiny.AutoModelForCausalLM.from_pretrained(settings.model)
    assert tokens(settings, found, model, tokenizer_of(settings.model)).length == tiny.LENGTH


def test_training_and_test_parts_are_drawn_from_the_seed(tmp_path: Path) -> None:
    rows = "\n".join(f"{i % 2} text {i}" for i in range(40))
    (tmp_path / "d.txt").write_text(rows)
    parts = [
        examples(resolve({"model": "m", "data": str(tmp_path / "d.txt"), "held_out": 0.25, "seed": seed}))
        for seed in (0, 0, 1)
    ]
    assert [len(part.test) for part in parts] == [10, 10, 10]
    assert set(parts[0].train.texts).isdisjoint(parts[0].test.texts)
    assert sorted(parts[0].train.texts + parts[0].test.texts) == sorted(line[2:] for line in rows.split("\n"))
    assert parts[0] == parts[1] and parts[0].test.texts != parts[2].test.texts


def test_every_class_keeps_a_training_example(tmp_path: Path) -> None:
    rare = [f"{i % 2} text {i}" for i in range(38)] + ["2 rare one", "3 rare two"]
    (tmp_path / "d.txt").write_text("\n".join(rare))
    for seed in range(40):
        found = examples(resolve({"model": "m", "data": str(tmp_path / "d.txt"), "seed": seed}))
        assert {*found.train.labels} == {0, 1, 2, 3} and len(found.test) == 4, seed
        assert sorted(found.train.texts + found.test.texts) == sorted(line[2:] for line in rare)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = resolve({"model": "m", "data": sentences(tmp_path, "a.txt")})
    same = resolve({"model": "m", "data": sentences(tmp_path, "b.txt")})
    assert first.fingerprint() == same.fingerprint() != []
    Path(same.data).write_text("1 another\n0 one")
    assert first.fingerprint() != same.fingerprint()
    assert resolve({"model": "m", "data": "hf:a/b"}).fingerprint() == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))

    def half(place: str) -> None:
        Path(place).mkdir()
        Path(place, "a").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match="cannot write to .*No space left on device"):
        folder.save("adapter", half)
    assert list(tmp_path.iterdir()) == []
    folder.save("adapter", lambda place: Path(place).mkdir())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_only_errors_of_the_disk_become_sentences(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^a bug$") as caught, writing(tmp_path):
        raise RuntimeError("a bug")
    assert not isinstance(caught.value, DiskError)
    for torn in (
        "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0",
        "basic_ios::clear: iostream error",
    ):
        with pytest.raises(DiskError, match="a checkpoint could not be written"), writing(tmp_path):
            raise RuntimeError(torn)
