"""Files of JSON lines `query, choices, gold` as tasks of lm-eval: nothing is downloaded or cached."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

METRICS = ("acc", "acc_norm")
_LINE = '{"query": "...", "choices": ["...", "..."], "gold": 0}'


@dataclass(frozen=True)
class Questions:
    """The questions of one file.

    Attributes:
        path: as the user gave it. rows: query, choices and gold of each. digest: SHA-256 of the file.
    """

    path: str
    rows: tuple[dict[str, Any], ...]
    digest: str

    def chance(self, asked: int) -> float:
        """Expected accuracy of guessing at the first ``asked`` questions."""
        rows = self.rows[:asked]
        return sum(1 / len(row["choices"]) for row in rows) / len(rows)


def is_file(name: str) -> bool:
    """Whether a task is meant as a file rather than as a name of lm-eval."""
    return name.endswith((".jsonl", ".json")) or "/" in name or Path(name).is_file()


def read(path: str) -> Questions:
    """Read and check a whole file: JSON lines in UTF-8, with or without a byte-order mark."""
    try:
        raw = Path(path).read_bytes()
        lines = raw.decode("utf-8-sig").split("\n")  # JSON may hold the other ends of str.splitlines as they are
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; expected JSON lines such as {_LINE}") from error
    except OSError as error:
        raise ValueError(f"task file {path} cannot be read ({error.strerror}); expected JSON lines") from error
    rows = tuple(_question(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip())
    if not rows:
        raise ValueError(f"{path} holds no question; expected JSON lines such as {_LINE}")
    return Questions(path, rows, hashlib.sha256(raw).hexdigest())


def _question(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error.msg}); expected {_LINE}") from error
    for key in ("query", "choices", "gold"):
        if not isinstance(row, dict) or key not in row:
            raise ValueError(f"{where} has no {key!r}; expected {_LINE}")
    query, choices, gold = row["query"], row["choices"], row["gold"]
    if not isinstance(query, str) or not query:
        raise ValueError(f"{where}: query must be a text that is not empty, got {query!r}")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise ValueError(f"{where}: choices must be a list of at least two texts that are not empty, got {choices!r}")
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise ValueError(f"{where}: gold must be the position of a choice, 0 to {len(choices) - 1}, got {gold!r}")
    return {"query": query, "choices": choices, "gold": gold}


def task(name: str, questions: Questions, delimiter: str, num_fewshot: int | None) -> ConfigurableTask:
    """The lm-eval task of a file.

    Args:
        name: under which the results stand.
        questions: of the file.
        delimiter: between query and choice.
        num_fewshot: solved examples before each question; they are other questions of the same file.
    """
    if (num_fewshot or 0) >= len(questions.rows):
        raise ValueError(
            f"num_fewshot={num_fewshot} was given, but {questions.path} has {len(questions.rows)} questions; "
            f"expected at most {len(questions.rows) - 1}"
        )
    return ConfigurableTask(config=_config(name, questions, delimiter))


def _config(name: str, questions: Questions, delimiter: str) -> dict[str, Any]:
    from datasets import Dataset

    return {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(list(questions.rows))},
        "test_split": "test",
        "fewshot_split": "test",  # named, so that lm-eval leaves the question itself out of its solved examples
        "output_type": "multiple_choice",
        "doc_to_text": "query",  # bare names are columns, taken as they are: nothing in a text is a template
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": delimiter,
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in METRICS],
        "metadata": {"version": 1},
    }
