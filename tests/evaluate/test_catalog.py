from functools import partial
from pathlib import Path

import datasets
import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager
from tests.evaluate import tiny

from steppe.evaluate import catalog
from steppe.evaluate.request import Request
from steppe.evaluate.run import evaluate

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
{more}
"""


@pytest.fixture
def index(tmp_path, monkeypatch, questions):
    """An lm-eval index of four names instead of fourteen thousand."""
    folder = tmp_path / "tasks"
    folder.mkdir()

    def add(name, more=""):
        text = TASK.format(name=name, path=questions, cache=tmp_path / "cache", more=more)
        (folder / f"{name}.yaml").write_text(text)

    add("arc_easy")
    add("zero", "num_fewshot: 0")
    add("unsafe", "unsafe_code: true")
    (folder / "both.yaml").write_text("group: both\ntask: [arc_easy, zero]\naggregate_metric_list: [{metric: acc}]\n")
    plain = partial(TaskManager, include_path=str(folder))
    monkeypatch.setattr(catalog, "TaskManager", lambda include_defaults: plain(include_defaults=False))
    return folder


def load(*tasks, **settings):
    return catalog.load(Request(".", tasks, **settings))


def few_shots(loaded):
    return {name: task.get_config("num_fewshot") for name, task in loaded.loaded["tasks"].items()}


@pytest.mark.parametrize("typed", ["arc_esy", "arc-easy", "ARC_easy"])
def test_an_unknown_name_is_refused_with_the_nearest(index, typed):
    with pytest.raises(ValueError, match=f"there is no task '{typed}'; did you mean 'arc_easy'"):
        load(typed)


def test_a_name_like_no_other_is_refused_with_examples(index):
    with pytest.raises(ValueError, match="there is no task 'xxxxxx'; such as hellaswag, arc_easy"):
        load("xxxxxx")


def test_a_task_that_runs_code_is_refused(index):
    with pytest.raises(ValueError, match="task 'unsafe' runs generated code or shows images"):
        load("unsafe")


def test_a_hub_that_is_not_there_is_one_sentence(index, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'owner/data' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"task 'arc_easy' could not be loaded: .*reachable or cached.*owner/data"):
        load("arc_easy")


def test_files_are_refused_before_the_hub_is_asked(index, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match="cannot be read"):
        load("arc_easy", str(tmp_path / "gone.jsonl"))


def test_a_task_and_a_group_that_holds_it_are_refused_together(index):
    with pytest.raises(ValueError, match="cannot be evaluated together.*arc_easy"):
        load("arc_easy", "both")


def test_a_file_called_like_a_task_keeps_its_path(index, tmp_path):
    path = tiny.write(tmp_path / "arc_easy.jsonl", tiny.rows(3))
    assert set(load("arc_easy", path).loaded["tasks"]) == {"arc_easy", path}


def test_solved_examples_follow_lm_eval(index, questions):
    assert few_shots(load("arc_easy", "zero", questions)) == {"animals": 0, "arc_easy": 0, "zero": 0}
    asked = few_shots(load("arc_easy", "zero", questions, num_fewshot=2))
    assert asked == {"animals": 2, "arc_easy": 2, "zero": 0}, "a task that fixes none keeps none"


def test_a_named_task_a_group_and_a_file_in_one_record(index, base, questions):
    record = evaluate(Request(base, ("both", questions), limit=30))
    tasks, group = record["tasks"], record["groups"]["both"]
    assert set(tasks) == {"animals", "arc_easy", "zero"}
    assert tasks["arc_easy"]["source"] == "lm-eval" and "chance" not in tasks["arc_easy"]
    assert tasks["arc_easy"]["metrics"]["acc"] == tasks["animals"]["metrics"]["acc"], "the same questions"
    assert group["metrics"]["acc"]["value"] == pytest.approx(tasks["zero"]["metrics"]["acc"]["value"])


def test_the_names_in_the_documents_are_lm_evals():
    folders = ("hellaswag", "arc", "openbookqa", "super_glue", "glue", "mmlu/default")  # all of them take ten seconds
    paths = [str(Path(lm_eval.tasks.__file__).parent / folder) for folder in folders]
    known = TaskManager(include_defaults=False, include_path=paths).all_tasks
    names = ("hellaswag", "arc_easy", "arc_challenge", "openbookqa", "boolq", "rte", "mmlu_stem")
    assert set(names) <= set(known)
