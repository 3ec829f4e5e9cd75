"""Sequences longer than the model takes, and such as it cannot score, beside what is known of their lengths."""

import pytest
from tests.evaluate import tiny

from steppe.cli import main
from steppe.evaluate.request import Request
from steppe.evaluate.run import evaluate

SHORT = {"query": "Q", "choices": ["ab", "cde"], "gold": 0}


def question(letters: int) -> dict:
    return {"query": "Q" * letters, "choices": ["ab", "cde"], "gold": 0}


def test_what_is_cut_is_counted_and_said(base, tmp_path, capsys):
    """The tokens are bytes, and the model takes 256; a space stands before an answer, whose last letter is foretold."""
    path = tiny.write(tmp_path / "q.jsonl", [SHORT, question(253), question(254), question(400)])
    assert evaluate(Request(base, (path,)))["cut"]["sequences"] == 4 - 1
    assert main(["evaluate", base, "--tasks", path, "--out", str(tmp_path / "r.json")]) == 0
    assert "3 of 8 sequences, each a question with one answer, are longer than the 256 tokens that the model takes" in (
        " ".join(capsys.readouterr().out.split())
    )


def test_where_nothing_is_cut_nothing_is_said(base, questions, capsys, tmp_path):
    assert main(["evaluate", base, "--tasks", questions, "--limit", "2", "--out", str(tmp_path / "r.json")]) == 0
    assert "sequences" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (SHORT | {"query": " "}, "the question ' ' is no token to the model"),
        (SHORT | {"query": "\n"}, "is no token to the model, so that no answer follows from it"),
        (SHORT | {"choices": ["ab", "cd" * 150]}, "'... has 301 tokens, and the model takes 1 to 256; shorten it"),
    ],
)
def test_what_the_model_cannot_score_is_refused(line, words, base, tmp_path, capsys):
    path = tiny.write(tmp_path / "q.jsonl", [SHORT, line])
    assert main(["evaluate", base, "--tasks", path, "--out", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("steppe: ") and words in said and not (tmp_path / "r.json").exists()
