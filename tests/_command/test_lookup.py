"""The name that was meant."""

import pytest

from steppe._command.lookup import near, nearest


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
