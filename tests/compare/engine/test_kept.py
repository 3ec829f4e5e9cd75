"""A folder of results written by version 0.1.0 while its modules still lay elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
from tests.compare import studies

import steppe
from steppe.cli import main
from steppe.compare.engine import study

KEPT = Path(__file__).parents[1] / "kept"
WORDS = (
    "compare --task digits-few --grow 0 --methods sam,rst:schedule=linear1 --seeds 2 --tune-seeds 1 --rho 0.1,0.2 "
    "--labelled 20 --validation 20 --epochs 1 --batch-size 10 --model mlp --jobs 1 --device cpu "
    "--test-curve 20 --no-half --json --out"
)
"""The command that wrote it, with what was the default then."""


def test_a_kept_study_is_taken_up_without_a_run(tmp_path, monkeypatch, capsys):
    """Neither runs nor costs are made again: the hash of the settings does not know where a module lies."""
    monkeypatch.setattr(steppe, "__version__", "0.1.0")  # other versions are other studies
    monkeypatch.setattr(study, "Pool", lambda size: pytest.fail("something is to be done again"))
    out = tmp_path / "kept"
    shutil.copytree(KEPT, out)
    before = studies.finished(out)
    assert main([*WORDS.split(), str(out)]) == 0
    assert studies.finished(out) == before and len(before) == 10
    assert (out / "cost.json").read_text() == (KEPT / "cost.json").read_text()
    summary, then = json.loads(capsys.readouterr().out), json.loads((KEPT / "summary.json").read_text())
    rows = [row | {"final": row["accuracy"]} for row in then["rows"]]  # what it was called
    assert [[plain(row[key]) for key in studies.EQUAL] for row in summary["rows"]] == [
        [plain(row[key]) for key in studies.EQUAL] for row in rows
    ]


def plain(figure):
    """Without what is said of two seeds otherwise now: that they have no interval."""
    if not isinstance(figure, dict):
        return figure
    return {key: each for key, each in figure.items() if key not in ("ci95", "p")}


def test_what_other_settings_make_is_another_study(tmp_path, monkeypatch):
    """The same folder with one setting changed has everything to do again."""
    monkeypatch.setattr(steppe, "__version__", "0.1.0")
    out = tmp_path / "kept"
    shutil.copytree(KEPT, out)

    class AskedError(Exception):
        pass

    def asked(size):
        raise AskedError

    monkeypatch.setattr(study, "Pool", asked)
    with pytest.raises(AskedError):
        main([*WORDS.replace("--batch-size 10", "--batch-size 5").split(), str(out)])
