import json
import math
import os

import pytest

from steppe.compare.engine import store
from steppe.compare.engine.store import Store


def test_a_record_comes_back_as_it_was(tmp_path):
    kept = Store(tmp_path, "abc")
    kept.open()
    saved = kept.save("run-1", "tune", {"val_accuracy": 0.5, "curve": {"loss": [1.0, math.inf, math.nan]}})
    assert saved["curve"] == {"loss": [1.0, None, None]} and saved["phase"] == "tune"
    assert kept.load(["run-1", "run-2"]) == {"run-1": saved}


def test_runs_that_five_choices_in_turn_led_to_are_all_known(tmp_path):
    kept = Store(tmp_path, "abc")
    kept.open()
    for number in range(6):
        kept.save(str(number), "tune", {})
    assert len(kept.known(lambda records: [str(i) for i in range(min(6, len(records) + 1))])) == 6


def test_half_written_files_are_neither_read_nor_kept(tmp_path):
    kept = Store(tmp_path, "abc")
    kept.open()
    (kept.runs / ".run-1.json.77.tmp").write_text('{"schema"')
    (kept.runs / "run-2.json").write_text('{"schema": 1, "spec_ha')
    kept.open()
    assert kept.load(["run-1", "run-2"]) == {}
    assert not list(kept.runs.glob(".*"))


def test_runs_of_other_settings_are_left_alone_and_not_read(tmp_path):
    mine, theirs = Store(tmp_path, "abc"), Store(tmp_path, "xyz")
    theirs.open()
    theirs.save("run-1", "final", {})
    assert mine.load(["run-1"]) == {}
    assert theirs.load(["run-1"])


def test_writing_never_leaves_half_a_file_in_place(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    store.write_json(path, {"a": 1})

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="name another folder with --out"):
        Store(tmp_path / "file", "abc").open()
