import errno
import json
import os

import pytest
from rich.console import Console
from tests.evaluate import tiny

from steppe.cli import main
from steppe.evaluate.commands import _is_share, _shown, table
from steppe.evaluate.run import _metrics


@pytest.fixture
def folder(base, questions, tmp_path, monkeypatch):
    """A folder to call the command in, with a model, data and much that cannot be used."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(base)
    (tmp_path / "q.jsonl").symlink_to(questions)
    (tmp_path / "empty.jsonl").write_text("")
    tiny.write(tmp_path / "no_gold.jsonl", [{"query": "x", "choices": ["a", "b"]}])
    tiny.write(tmp_path / "far.jsonl", [{"query": "x", "choices": ["a", "b"], "gold": 7}])
    tiny.write(tmp_path / "text.jsonl", [{"query": "x", "choices": "ab", "gold": 0}])
    (tmp_path / "bare").mkdir()
    return tmp_path


BAD = [
    # what is typed after `steppe evaluate`, and what the one sentence must contain
    ("", "model is missing: causal language model"),
    ("model", "no task was given; name some, such as --tasks"),
    ("model --tasks ,", "no task was given"),
    ("model --tasks q.jsonl,q.jsonl", "task 'q.jsonl' is named twice"),
    ("model --tasks gone.jsonl", "task file gone.jsonl cannot be read (No such file or directory)"),
    ("model --tasks empty.jsonl", "empty.jsonl holds no question"),
    ("model --tasks no_gold.jsonl", "no_gold.jsonl, line 1 has no 'gold'"),
    ("model --tasks far.jsonl", "gold must be the position of a choice, 0 to 1, got 7"),
    ("model --tasks text.jsonl", "choices must be a list"),
    ("./gone --tasks q.jsonl", "model './gone' is not a folder here, and not a hub id"),
    ("q.jsonl --tasks q.jsonl", "model 'q.jsonl' is a file; expected a folder"),
    ("bare --tasks q.jsonl", "model folder bare has no config.json"),
    ("model --tasks q.jsonl --adapter bare", "bare is no PEFT adapter: it has no adapter_config.json"),
    ("model --tasks q.jsonl --adapter ./gone", "adapter './gone' is not a folder here"),
    ("model --tasks q.jsonl --limit 0", "limit=0 was given; expected a whole number of at least 1"),
    ("model --tasks q.jsonl --num-fewshot=-1", "num_fewshot=-1 was given"),
    ("model --tasks q.jsonl --num-fewshot 40", "q.jsonl has 40 questions; expected at most 39"),
    ("model --tasks q.jsonl --batch-size 0", "batch_size=0 was given"),
    ("model --tasks q.jsonl --batch-size many", "batch_size='many' was given"),
    ("model --tasks q.jsonl --dtype int8", "dtype='int8' was given; expected one of 'auto', 'float32'"),
    ("model --tasks q.jsonl --device tpu9", "device must be 'auto', 'cpu', 'cuda'"),
    ("model --tasks q.jsonl --out bare", "bare is a folder; name a file with --out"),
    ("model --tasks q.jsonl --out q.jsonl/result.json", "cannot write to q.jsonl/result.json"),
    ("model --task q.jsonl", "--tasks"),
]


def refusal(arguments, capsys):
    assert main(["evaluate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("steppe: ") and captured.err.count("steppe: ") == 1
    return last


@pytest.mark.parametrize(("typed", "hint"), BAD, ids=[typed or "nothing" for typed, _ in BAD])
def test_bad_inputs_are_one_sentence_and_nothing_is_written(typed, hint, folder, capsys):
    before = sorted(folder.rglob("*"))
    assert hint in refusal(typed.split(), capsys)
    assert sorted(folder.rglob("*")) == before


def test_the_record_is_one_file_and_the_table_says_the_same(folder, capsys):
    assert main("evaluate model --tasks q.jsonl --limit 20 --out new/result.json".split()) == 0
    shown = capsys.readouterr().out
    record = json.loads((folder / "new" / "result.json").read_text())
    assert [path.name for path in (folder / "new").iterdir()] == ["result.json"]
    task = record["tasks"]["q"]
    assert (task["examples"], task["of"], task["num_fewshot"]) == (20, 40, 0)
    asked = [json.loads(line)["choices"] for line in (folder / "q.jsonl").read_text().splitlines()][:20]
    assert task["source"] == "q.jsonl" and task["chance"] == pytest.approx(sum(1 / len(row) for row in asked) / 20)
    for name, figure in task["metrics"].items():
        assert name in shown and all(f"{100 * figure[key]:.2f} %" in shown for key in ("value", "stderr"))
    assert record["settings"]["limit"] == 20 and record["measured"]["dtype"] == "float32"
    assert {"lm_eval", "torch", "steppe"} <= set(record["provenance"]) and record["provenance"]["device"] == "cpu"


def test_json_on_stdout_is_the_file(folder, capsys):
    assert main("evaluate model --tasks q.jsonl --limit 4 --json --out result.json".split()) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "result.json").read_text())


def test_two_files_of_one_name_stay_apart(folder, capsys):
    tiny.write(folder / "bare" / "q.jsonl", tiny.rows(6, seed=9))
    assert main("evaluate model --tasks q.jsonl,bare/q.jsonl --limit 5 --out two.json".split()) == 0
    tasks = json.loads((folder / "two.json").read_text())["tasks"]
    assert {name: task["of"] for name, task in tasks.items()} == {"q": 40, "bare/q.jsonl": 6}


def test_without_out_the_file_is_named_after_the_command(folder, capsys):
    """Another one does not write over what it measured; the same one does."""
    tiny.write(folder / "bare" / "q.jsonl", tiny.rows(6, seed=9))
    for words in ("q.jsonl", "q.jsonl", "bare/q.jsonl,q.jsonl", "q.jsonl --seed 7"):
        assert main(f"evaluate ./model --limit 2 --tasks {words}".split()) == 0
    names = ["model-q.jsonl-limit-2", "model-bare-q.jsonl-q.jsonl-limit-2", "model-q.jsonl-limit-2-seed-7"]
    assert {path.name for path in (folder / "results" / "evaluate").iterdir()} == {f"{name}.json" for name in names}
    assert f"Results: results/evaluate/{names[-1]}.json" in capsys.readouterr().out


def test_a_line_break_as_delimiter(folder):
    assert main(["evaluate", "model", "--tasks", "q.jsonl", "--limit", "2", "--delimiter", "\\nAnswer: "]) == 0
    (path,) = (folder / "results" / "evaluate").iterdir()
    record = json.loads(path.read_text())
    assert record["settings"]["delimiter"] == "\nAnswer: "


def test_a_full_disk_leaves_nothing_and_the_figures_are_on_the_screen(folder, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main("evaluate model --tasks q.jsonl --limit 2 --out full/result.json".split()) == 2
    captured = capsys.readouterr()
    assert "could not be written to full/result.json (No space left on device)" in captured.err
    assert "acc_norm" in captured.out
    assert not list((folder / "full").iterdir())


def test_figures_that_are_no_shares_are_shown_as_they_are():
    assert _shown(0.25, True) == "25.00 %" and _shown(12.3456, False) == "12.35" and _shown(0.71, False) == "0.71"
    assert _shown(None, True) == "" and _shown("bypass", False) == "bypass" and _shown(-0.05, True) == "-5.00 %"
    shares = ("acc", "acc_norm", "exact_match", "exact_match,strict-match", "f1", "mcc")
    assert all(map(_is_share, shares))
    assert not any(map(_is_share, ("word_perplexity", "bits_per_byte", "bleu", "brier_score", "rouge1_max")))


def test_no_figure_is_cut_where_a_name_is_long_or_the_terminal_narrow(capsys):
    figures = {
        "metrics": {"acc_norm": {"value": 0.2512, "stderr": 0.0312}},
        "examples": 1000,
        "of": 14042,
        "chance": 0.25,
    }
    shown = table({"tasks": {"mmlu_high_school_computer_science": figures}, "groups": {}})
    for width in (60, 80):
        Console(width=width).print(shown)
        said = capsys.readouterr().out
        assert all(part in said for part in ("25.12 %", "3.12 %", "25.00 %", "1000 of 14042")) and "…" not in said


def test_a_figure_of_a_filter_keeps_its_name_and_its_own_error():
    row = {"alias": "q", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc,strict": 0.2, "acc_stderr,strict": 0.3}
    assert _metrics(row | {"ppl,none": 7.0, "ppl_stderr,none": "N/A"}) == {
        "acc": {"value": 0.5, "stderr": 0.1}, "acc,strict": {"value": 0.2, "stderr": 0.3},
        "ppl": {"value": 7.0, "stderr": None},
    }  # fmt: skip


def test_without_lm_eval_one_sentence_says_what_to_install(folder, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in [name for name in sys.modules if name.startswith("steppe.evaluate.") and "commands" not in name]:
        monkeypatch.delitem(sys.modules, name)
    assert "pip install 'steppe[study,evaluate]'" in refusal("model --tasks q.jsonl".split(), capsys)
