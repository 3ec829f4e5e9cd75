import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from tests import bare

import steppe
from steppe.cli import main
from steppe.methods import METHODS

ROOT = Path(__file__).parents[1]
TINY = ["compare", "--task", "tests.compare.tiny:task"]

BAD_FLAGS = [
    # what is typed after `steppe`, and what the one sentence must contain
    ("compair", "compare"),
    ("compare --epoch 3", "--epochs"),
    ("predict run x.txt", "x.txt stands behind no flag; `steppe predict --help` lists them"),
    ("compare --epochs", "--epochs"),
    ("compare --epochs many", "for '--epochs'"),
    ("compare --epochs 0", "epochs must be a whole number of at least 1, got 0"),
    ("compare --batch-size -4", "batch_size must be a whole number of at least 1, got -4"),
    ("compare --lr 0", "lr must be a number above 0, got 0.0"),
    ("compare --lr inf", "lr must be a number above 0"),
    ("compare --lr nan", "lr must be a number above 0"),
    ("compare --momentum 1", "momentum must be a share from 0 up to, not including, 1"),
    ("compare --weight-decay -1", "weight_decay must be a number of at least 0"),
    ("compare --noise 1.5", "noise must be a share"),
    ("compare --optimizer adam", "optimizer must be 'sgd', 'adamw' or 'amsgrad', got 'adam'"),
    ("compare --lr-schedule cosin", "lr_schedule must be 'cosine', 'constant' or 'linear'"),
    ("compare --seeds 0", "seeds must be a count of at least 1, or a list of seeds"),
    ("compare --seeds a,b", "seeds must be a count"),
    ("compare --seeds=-1", "seeds must be a count"),
    ("compare --seeds 1,1", "seeds: 1 is there twice"),
    ("compare --tune-seeds 0", "tune_seeds must be a count"),
    ("compare --rho 0.1,x", "rho must be a list of radii above 0, got '0.1,x'"),
    ("compare --rho 0", "rho must be a list of radii above 0"),
    ("compare --rho 0.1,0.1", "0.1 is there twice"),
    ("compare --sharpness-rho 0", "sharpness_rho must be a number above 0"),
    ("compare --jobs 0", "jobs must be a whole number from 1 to 256"),
    ("compare --labelled 1", "labelled must be a whole number of at least 2"),
    ("compare --labelled 5000", "cannot take 5000 of 4000 labelled examples; ask for 1 to 4000"),
    ("compare --task mnist1d --labelled 5000", "lower --labelled or --validation"),
    ("compare --image-size 4", "image_size must be a whole number of at least 8"),
    ("compare --eval-every 0", "eval_every must be a whole number of epochs"),
    ("compare --device tpu9", "device must be"),
    ("compare --image-size 16", "does not take 'image_size'"),
    ("compare --task tests.compare.tiny:task --labelled 10", "does not take 'labelled'"),
    ("compare --task idx:src --label-column y", "does not take 'label_column'"),
    ("compare --optimizer adamw --momentum 0.9", "momentum belongs to the optimizer 'sgd'"),
    ("compare --task digits-fwe", "did you mean 'digits-few'?"),
    ("compare --task tabel:cells.csv", "did you mean table:cells.csv?"),
    ("compare --task src", "idx:src, images:src or text:src"),
    ("compare --task idx:nowhere", "nowhere is not a folder"),
    ("compare --task idx:src", "no file like train-images"),
    ("compare --task images:nowhere", "nowhere is not a folder"),
    ("compare --task no_such_module:task", "cannot import module 'no_such_module'"),
    ("compare --task tests.compare.tiny:tsk", "did you mean 'task'?"),
    ("compare --task tests.compare.tiny:no_task", "expected a steppe.compare.Task"),
    ("compare --task tests.compare.tiny:bad_recipe", "did you mean 'epochs'?"),
    ("compare --model cn", "did you mean 'cnn'?"),
    ("compare --model tests.compare.tiny:nothing", "has no function 'nothing'"),
    ("compare --methods ,", "no method to compare"),
    ("compare --methods base", "the base always runs"),
    ("compare --methods looksam", "did you mean 'look_sam'?"),
    ("compare --methods sam,sam", "named twice"),
    ("compare --methods sam:", "ends in ':'; write name or name:key=value"),
    ("compare --methods sam:rho", "write name:key=value"),
    ("compare --methods look_sam:kk=5", "did you mean 'k'?"),
    ("compare --methods look_sam:k=often", "k = 'often' is not a whole number"),
    ("compare --methods look_sam:k=0", "method 'look_sam:k=0': k=0 was given"),
    ("compare --methods look_sam:push=pull", "natural"),
    ("compare --methods rst:p=1.5", "method 'rst:p=1.5'"),
    ("compare --methods rst:p=half", "is not a number"),
    ("compare --methods rst:schedule=linaer1", "linear1"),
    ("compare --methods sam:rho=-1", "rho"),
    ("compare --methods sam:seed=3", "set by the study itself"),
    ("compare --methods sam_on", "method 'sam_on': nothing to perturb"),
    ("compare --config nowhere.toml", "give the path of a TOML file to --config"),
    ("compare --out /dev/null/results", "name another folder with --out"),
    ("methods lok_sam", "did you mean 'look_sam'?"),
]

BAD_FILES = [
    ("epochs = ", "is not TOML"),
    ("epoch = 3", "unknown setting 'epoch'; did you mean 'epochs'?"),
    ("batch-size = 3", "did you mean 'batch_size'?"),
    ("[data]\nlabelled = 3", "unknown setting 'data'"),
    ('epochs = "3"', "epochs must be a whole number of at least 1, got '3'"),
    ("epochs = 2.5", "epochs must be a whole number"),
    ("epochs = true", "epochs must be a whole number"),
    ('methods = ["samm"]', "did you mean 'sam'?"),
    ("methods = []", "methods must be a list of method names"),
    ("methods = 3", "methods must be a list of method names"),
    ("seeds = [0, -1]", "seeds must be"),
    ("seeds = []", "seeds must be"),
    ("rho = [0.1, -0.2]", "rho must be a list of radii above 0"),
    ('rho = "big"', "rho must be a list of radii above 0"),
    ('lr = "fast"', "lr must be a number above 0"),
    ("task = 3", "task must be the name of a task"),
]


def refusal(arguments: list[str], capsys) -> str:
    """The sentence `steppe` refuses with, after checking that it is one and the exit code 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("steppe: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize(("typed", "hint"), BAD_FLAGS, ids=[typed for typed, _ in BAD_FLAGS])
def test_bad_flags_are_one_sentence_with_what_to_do(typed, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = typed.split()
    if arguments[0] == "compare" and "--out" not in arguments:
        arguments += ["--out", str(tmp_path)]
    assert hint in refusal(arguments, capsys)


@pytest.mark.parametrize(("text", "hint"), BAD_FILES, ids=[text for text, _ in BAD_FILES])
def test_bad_files_are_one_sentence_with_what_to_do(text, hint, capsys, tmp_path):
    config = tmp_path / "study.toml"
    config.write_text(text)
    assert hint in refusal(["compare", "--config", str(config), "--out", str(tmp_path / "out")], capsys)


def test_nothing_is_written_when_something_is_refused(capsys, tmp_path):
    refusal(["compare", "--methods", "nothing", "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"steppe {steppe.__version__}\n"
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["compare", "--help"]) == 0
    assert "--tune-seeds" in capsys.readouterr().out


def test_methods_lists_every_method_with_its_cost(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in METHODS)
    assert main(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["recommended", *METHODS]
    assert all(row["passes"] and row["buffers"] and row["paper"] for row in rows)
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for shown in (r"^\| \[.*\]\(#(\w+)\)", r'^<a id="(\w+)"></a>'):  # its table, its cards
        assert re.findall(shown, page, re.MULTILINE) == [row["name"] for row in rows], "run make docs"


def test_a_methods_card(capsys):
    assert main(["methods", "look_sam:k=5"]) == 0
    assert "2203.02714" in capsys.readouterr().out
    assert main(["methods", "look_sam", "--json"]) == 0
    assert {"rho", "k", "alpha", "push"} <= set(json.loads(capsys.readouterr().out)["settings"])


def test_python_m_steppe(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["steppe", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("steppe", run_name="__main__")
    assert (end.value.code or 0, capsys.readouterr().out) == (0, f"steppe {steppe.__version__}\n")


def test_an_interrupt_while_torch_is_imported_is_one_line_of_the_command_and_nobody_elses(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    command = "import sys; sys.argv = ['/bin/steppe']; import steppe.cli"
    told = []
    for words in (["-m", "steppe"], ["-c", command], ["-c", command.replace("/bin/steppe", "train.py")]):
        found = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
        environment = {**os.environ, "PYTHONPATH": found}
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode
        told.append(done.stderr)
    assert told[:2] == ["steppe: interrupted\n"] * 2 and "Traceback" in told[2]


def test_without_the_extra_one_sentence_says_what_to_install():
    """Each package missing in turn, in one process that has imported none of the command."""
    code = """if True:
        import sys
        from steppe.cli import main
        for missing in ("typer", "rich", "pydantic"):
            before = set(sys.modules)
            sys.modules[missing] = None
            print(main(["compare", "--task", "none"]))
            del sys.modules[missing]
            for name in set(sys.modules) - before:
                if name.startswith("steppe"):
                    del sys.modules[name]
    """
    done = bare.run(code)
    assert done.stdout.split() == ["2"] * 3 and done.stderr.count("\n") == 3, done.stderr
    assert done.stderr.count("pip install 'steppe[study]'") == 3
