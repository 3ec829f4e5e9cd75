import hashlib
import json
from pathlib import Path

import pytest
from tests.evaluate import tiny

from steppe.evaluate import files

GOOD = {"query": "2 + 2 =", "choices": ["3", "4"], "gold": 1}

BAD_LINES = [
    # the line, and what the sentence must contain
    ('{"query": "x", ', "line 2 is not JSON"),
    ("[1, 2]", "line 2 has no 'query'"),
    ('"text"', "line 2 has no 'query'"),
    ({"choices": ["a", "b"], "gold": 0}, "line 2 has no 'query'"),
    ({"query": "x", "gold": 0}, "line 2 has no 'choices'"),
    ({"query": "x", "choices": ["a", "b"]}, "line 2 has no 'gold'"),
    (GOOD | {"query": 3}, "query must be a text that is not empty, got 3"),
    (GOOD | {"query": ""}, "query must be a text that is not empty"),
    (GOOD | {"choices": "34"}, "choices must be a list of at least two texts"),
    (GOOD | {"choices": ["4"]}, "choices must be a list of at least two texts"),
    (GOOD | {"choices": ["3", ""]}, "choices must be a list of at least two texts that are not empty"),
    (GOOD | {"choices": [3, 4]}, "choices must be a list of at least two texts"),
    (GOOD | {"gold": 2}, "gold must be the position of a choice, 0 to 1, got 2"),
    (GOOD | {"gold": -1}, "0 to 1, got -1"),
    (GOOD | {"gold": "4"}, "0 to 1, got '4'"),
    (GOOD | {"gold": True}, "0 to 1, got True"),
    (GOOD | {"gold": 1.0}, "0 to 1, got 1.0"),
]


@pytest.mark.parametrize(("line", "hint"), BAD_LINES, ids=[hint for _, hint in BAD_LINES])
def test_a_line_that_is_no_question_is_named(line, hint, tmp_path):
    path = tiny.write(tmp_path / "bad.jsonl", [GOOD, line])
    with pytest.raises(ValueError) as refused:
        files.read(path)
    assert hint in str(refused.value) and path in str(refused.value)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(text, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no question; expected JSON lines such as"):
        files.read(str(path))


def test_a_file_that_is_missing_a_folder_or_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        files.read(str(tmp_path / "missing.jsonl"))
    with pytest.raises(ValueError, match="cannot be read"):
        files.read(str(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "caf\xe9"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        files.read(str(tmp_path / "latin.jsonl"))


def test_what_is_read(tmp_path):
    path = tiny.write(tmp_path / "q.jsonl", [GOOD | {"source": "school"}, "", GOOD | {"choices": ["1", "2", "3", "4"]}])
    read = files.read(path)
    assert read.rows[0] == GOOD, "other keys are left out"
    assert len(read.rows) == 2
    assert read.chance(2) == pytest.approx((1 / 2 + 1 / 4) / 2) and read.chance(1) == 1 / 2
    assert read.digest == hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_other_ends_of_lines_within_a_text_and_a_byte_order_mark(tmp_path):
    path, text = tmp_path / "q.jsonl", "2\u20282\x85 ="
    line = json.dumps(GOOD | {"query": text}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{line}\r\n{line}\r\n".encode())
    assert [row["query"] for row in files.read(str(path)).rows] == [text, text]


def test_names_and_files_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not files.is_file("arc_easy")
    assert files.is_file("arc_easy.jsonl") and files.is_file("./data/arc_easy")
    (tmp_path / "questions").write_text("")
    assert files.is_file("questions")


def test_texts_are_taken_as_they_are(tmp_path):
    row = {"query": "{{ 3 * 3 }} {% raw %}\n", "choices": ["{{ gold }}", "choices"], "gold": 1}
    task = files.task("mine", files.Questions("mine.jsonl", (row,), ""), " ", None)
    doc = task.eval_docs[0]
    assert task.doc_to_text(doc) == row["query"]
    assert task.doc_to_choice(doc) == row["choices"]
    assert task.doc_to_target(doc) == 1


def test_a_question_is_never_among_its_own_solved_examples():
    rows = tuple({"query": f"q{i}", "choices": ["a", "b"], "gold": 0} for i in range(4))
    task = files.task("mine", files.Questions("mine.jsonl", rows, ""), " ", 3)
    task.set_fewshot_seed(seed=0)
    for row in rows:
        context = task.fewshot_context(row, 3)
        assert context.count(row["query"]) == 1 and context.endswith(row["query"])
        assert all(other["query"] in context for other in rows)


def test_more_solved_examples_than_questions_are_refused():
    rows = (GOOD, GOOD)
    with pytest.raises(ValueError, match="mine.jsonl has 2 questions; expected at most 1"):
        files.task("mine", files.Questions("mine.jsonl", rows, ""), " ", 2)
