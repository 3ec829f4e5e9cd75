"""What lm-eval says when called directly, on the same questions read by its own reader, is what `evaluate` says."""

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from tests.evaluate import tiny

from steppe.evaluate.request import Request
from steppe.evaluate.run import evaluate

METRICS = ("acc", "acc_norm")


def directly(model_args, path, cache, *, delimiter=" ", **settings):
    task = {
        "task": "direct", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": path}, "cache_dir": str(cache)},
        "test_split": "test", "fewshot_split": "test", "output_type": "multiple_choice",
        "doc_to_text": "{{query}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}", "target_delimiter": delimiter,
        "metric_list": [{"metric": name} for name in METRICS],
    }  # fmt: skip
    found = lm_eval.simple_evaluate(
        model="hf", model_args=model_args, tasks=[task], device="cpu", batch_size=4, log_samples=False,
        task_manager=TaskManager(include_defaults=False), **settings,
    )  # fmt: skip
    row = found["results"]["direct"]
    return {name: {"value": row[f"{name},none"], "stderr": row[f"{name}_stderr,none"]} for name in METRICS}


def by_steppe(path, model, **settings):
    return evaluate(Request(model, (path,), **settings))["tasks"]["animals"]["metrics"]


@pytest.fixture(autouse=True)
def _no_description_of_the_machine(monkeypatch):
    from lm_eval import evaluator

    monkeypatch.setattr(evaluator, "add_env_info", lambda results: None)  # takes seconds


def test_a_model_on_a_file(base, questions, tmp_path):
    mine = by_steppe(questions, base)
    assert mine == directly({"pretrained": base}, questions, tmp_path)
    plain, by_length = (mine[name]["value"] for name in METRICS)
    assert 0 < plain < 1 and plain != by_length, "else the test would see nothing"


def test_solved_examples_before_each_question(base, questions, tmp_path):
    mine = by_steppe(questions, base, num_fewshot=2, limit=30)
    assert mine == directly({"pretrained": base}, questions, tmp_path, num_fewshot=2, limit=30)
    assert mine != by_steppe(questions, base, limit=30)


def test_the_seed_draws_the_solved_examples(base, questions, tmp_path):
    mine = by_steppe(questions, base, num_fewshot=1, seed=5)
    assert mine == directly({"pretrained": base}, questions, tmp_path, num_fewshot=1, fewshot_random_seed=5)
    assert mine != by_steppe(questions, base, num_fewshot=1, seed=6)


def test_another_delimiter(base, questions, tmp_path):
    mine = by_steppe(questions, base, delimiter="Answer: ")
    assert mine == directly({"pretrained": base}, questions, tmp_path, delimiter="Answer: ")


def test_half_precision(base, questions, tmp_path):
    mine = by_steppe(questions, base, dtype="bfloat16")
    assert mine == directly({"pretrained": base, "dtype": "bfloat16"}, questions, tmp_path)


def test_an_adapter(base, lora, questions, tmp_path):
    mine = by_steppe(questions, base, adapter=lora)
    assert mine == directly({"pretrained": base, "peft": lora}, questions, tmp_path)
    assert mine != by_steppe(questions, base), "the adapter must show"
    assert mine == by_steppe(questions, lora), "an adapter alone brings its base along"


def test_accuracy_is_about_chance_for_a_model_that_knows_nothing(base, tmp_path):
    path = tiny.write(tmp_path / "animals.jsonl", tiny.rows(150, seed=3))
    task = evaluate(Request(base, (path,)))["tasks"]["animals"]
    acc = task["metrics"]["acc"]
    assert acc["stderr"] == pytest.approx((acc["value"] * (1 - acc["value"]) / 149) ** 0.5)
    assert abs(acc["value"] - task["chance"]) < 4 * acc["stderr"]
