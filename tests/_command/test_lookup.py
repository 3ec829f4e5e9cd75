"""The name that was meant."""

import pytest

from steppe._command.lookup import called, named_function, near, nearest


@pytest.mark.parametrize(
    ("typed", "names", "meant"),
    [
        ("looksam", ["sam", "look_sam", "look_layer_sam"], "look_sam"),
        ("epoch", ["epochs", "eval-every"], "epochs"),
        ("text", ["test-curve", "text-column", "max-length"], "text-column"),  # a word of it
        ("rate", ["learning_rate", "learning_rate_scheduler"], "learning_rate"),  # the shortest that holds it
        ("Batch-Size", ["batch_size"], "batch_size"),
        ("tsk", ["Task", "task"], "task"),
        ("epochs", ["response", "examples"], None),
        ("lr", ["r", "alpha"], None),
        ("x", [], None),
    ],
)
def test_the_nearest_name_or_none(typed, names, meant):
    assert near(typed, names) == meant


def test_without_a_near_one_all_are_named():
    assert nearest("zzz", ["sam", "rst"]) == "known: sam, rst"
    assert nearest("sma", ["sam", "rst"]) == "did you mean 'sam'?"


def test_a_file_that_exits_when_it_is_imported_is_said(tmp_path):
    (tmp_path / "exits.py").write_text("raise SystemExit(2)\n")
    with pytest.raises(ValueError, match=r"cannot import module '.*exits.py' \(SystemExit: 2\)"):
        named_function(f"{tmp_path}/exits.py:task", "task")


def test_a_function_that_exits_is_said():
    def exits(seed):
        raise SystemExit(seed)

    with pytest.raises(ValueError, match="task 'mine:exits' failed with SystemExit: 4"):
        called(exits, 4, what="task 'mine:exits'", form="a function of the seed")
