"""Several commands at one study in one folder share its runs; other settings there replace nothing without a word."""

import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from steppe._command import files, progress
from steppe._command.files import DiskError
from steppe._command.locks import TakenError, claim
from steppe._command.ranks import InStep
from steppe.compare.engine import store, study
from steppe.compare.engine.spec import resolve


def settled(out: Path, **flags):
    flags = {
        "task": "tests.compare.tiny:task",
        "methods": ["sam"],
        "seeds": 1,
        "rho": 0.1,
        "jobs": 1,
        "half": False,
        **flags,
    }
    plan = study.check(resolve({**flags, "out": str(out)}))
    with progress.PlainProgress(Console(stderr=True)) as shown:
        return study.compare(plan, shown)


@pytest.fixture(autouse=True)
def runs_alone(monkeypatch):
    """Runs are made in this process, and not timed."""
    monkeypatch.setattr(study, "Pool", lambda size: InStep())
    monkeypatch.setattr(study.cost, "measure", lambda *_: {"methods": {}})


class Waits(BaseException):
    """Instead of waiting."""


@pytest.fixture
def made(monkeypatch):
    """The ids of the runs that were made, in order; `made.then` is called in the midst of the first."""
    train = study.run.train

    class Made(list):
        then = None

    noted = Made()

    def noting(spec, each, *tell):
        noted.append((each.method, each.variant, each.seed))
        then, noted.then = noted.then, None
        if then:
            then()
        return train(spec, each, *tell)

    monkeypatch.setattr(study.run, "train", noting)
    return noted


def test_two_at_once_make_each_run_once_and_write_the_same_report(tmp_path, made, monkeypatch, capsys):
    whole = settled(tmp_path / "alone")
    made.clear()

    def second():
        """In the midst of the first one's first run: it makes all others, and waits for that one."""
        with monkeypatch.context() as patch, pytest.raises(Waits):
            patch.setattr(time, "sleep", _wait)
            settled(tmp_path / "shared")
        assert len(made) == 3

    made.then = second
    shared = settled(tmp_path / "shared")
    assert len(made) == len(set(made)) == 3
    said = capsys.readouterr().err
    assert "waiting for runs that another process has begun in this folder" in said
    assert said.count("another process works at this study in this folder, too") == 1, "the second one, at its start"
    assert said.count("(in another process)") == 2, "in the first one's lines those that the second made"
    assert [row["final"] for row in shared.summary["rows"]] == [row["final"] for row in whole.summary["rows"]]
    assert not list(tmp_path.rglob(".*"))


def _wait(_):
    raise Waits


def test_shards_take_over_what_nobody_has_begun(tmp_path, made, monkeypatch):
    """The second of two comes in the midst of the first one's first run, makes all others and waits for that one."""

    def second():
        with monkeypatch.context() as patch, pytest.raises(Waits):
            patch.setattr(time, "sleep", _wait)
            settled(tmp_path, seeds=2, shard="2/2")
        assert len(made) == 6

    made.then = second
    settled(tmp_path, seeds=2, shard="1/2")
    assert len(made) == len(set(made)) == 6
    assert "shard" not in json.loads((tmp_path / "spec.json").read_text())


def test_the_shares_of_the_shards_are_all_runs_once():
    plan = study.Plan(resolve({"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 40, "rho": 0.1}), "0")
    runs = plan.needed({})
    orders = [list(study.in_turn(runs, (i, 3))) for i in (1, 2, 3)]
    assert all(sorted(order) == sorted(runs) for order in orders) and study.in_turn(runs, None) is runs
    own = [[id_ for id_ in order if int(id_[-12:], 16) % 3 == i] for i, order in enumerate(orders)]
    assert sorted(sum(own, [])) == sorted(runs) and min(map(len, own)) > 20
    assert all(order[: len(mine)] == mine for order, mine in zip(orders, own, strict=True))


@pytest.mark.parametrize("given", ["3/2", "0/2", "1", "a/b", "1/2/3", "01/2"])
def test_a_shard_that_is_none_is_one_sentence(given):
    with pytest.raises(ValueError, match=rf"^shard must be i/n with i from 1 to n, such as 2/4, got '{given}'$"):
        resolve({"shard": given})


def test_a_run_that_failed_in_one_process_is_not_tried_in_the_other(tmp_path, monkeypatch, capsys):
    tried = []

    class Failing(InStep):
        def events(self):
            while self._waiting:
                job = self._waiting.popleft()
                tried.append(job.key)
                if len(tried) == 1:
                    yield study.Event("failed", job.key, "the model is broken")
                    with monkeypatch.context() as patch, pytest.raises(Waits):  # for the run that this one is at now
                        patch.setattr(time, "sleep", _wait)
                        settled(tmp_path)
                else:
                    yield study.Event("done", job.key, job.function(*job.arguments))

    monkeypatch.setattr(study, "Pool", lambda size: Failing())
    outcome = settled(tmp_path)
    assert len(outcome.failed) == 1 and len(tried) == len(set(tried)) == 3, "no method to be timed"
    assert capsys.readouterr().err.count("failed: the model is broken (in another process)") == 1
    assert settled(tmp_path).failed == {} and len(tried) == 5, "the next command tries again, and measures"


def test_a_run_whose_maker_has_gone_is_taken_over(tmp_path, made, monkeypatch):
    def gone():
        raise Waits

    made.then = gone
    with pytest.raises(Waits):
        settled(tmp_path)
    (tmp_path / "runs" / ".left.claim").touch()  # of a killed process: the lock has gone with it
    settled(tmp_path)
    assert len(made) == 4 and len(set(made)) == 3
    assert not list(tmp_path.rglob(".*"))


def test_the_times_are_measured_by_one(tmp_path, monkeypatch, capsys):
    def meanwhile(*_):
        with monkeypatch.context() as patch, pytest.raises(Waits):
            patch.setattr(time, "sleep", _wait)
            patch.setattr(study.cost, "measure", None)
            settled(tmp_path)
        return {"methods": {}}

    monkeypatch.setattr(study.cost, "measure", meanwhile)
    settled(tmp_path)
    assert "waiting for the times that another process measures" in capsys.readouterr().err


def test_what_another_process_is_writing_is_not_tidied_away(tmp_path, monkeypatch):
    """A study opens the folder at the very moment in which another is about to move a run's file in place."""
    kept = store.Store(tmp_path, "abc")
    kept.open()
    replace = files.os.replace

    def meanwhile(partial, place):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", replace)
            store.Store(tmp_path, "abc").open()
        replace(partial, place)

    monkeypatch.setattr(files.os, "replace", meanwhile)
    kept.save("run-1", "tune", {})
    assert kept.load(["run-1"])


def test_another_studys_report_is_put_aside_with_a_word_and_comes_back(tmp_path, made, capsys):
    settled(tmp_path)
    assert "showed a study" not in capsys.readouterr().err
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    settled(tmp_path, epochs=2)
    said = capsys.readouterr().err
    assert "showed a study of other settings (epochs was 4 and is 2): its report and cost are in" in said
    (aside,) = (tmp_path / "earlier").iterdir()
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == first
    assert json.loads((tmp_path / "spec.json").read_text())["epochs"] == 2
    count = len(made)
    settled(tmp_path)
    assert len(made) == count
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == first


def test_a_study_that_ends_behind_another_leaves_that_ones_report(tmp_path, made):
    made.then = lambda: settled(tmp_path, epochs=2)
    outcome = settled(tmp_path)
    assert json.loads((tmp_path / "spec.json").read_text())["epochs"] == 2
    assert outcome.report.parent.parent.name == "earlier" and outcome.report.exists()
    assert json.loads(outcome.report.with_name("spec.json").read_text())["epochs"] == 4
    late, shown = (place.with_name("summary.json").read_text() for place in (outcome.report, tmp_path / "report.html"))
    assert json.loads(late) == json.loads(json.dumps(outcome.summary)) != json.loads(shown)


def test_a_full_disk_is_one_sentence_and_keeps_what_is_finished(tmp_path, made, monkeypatch):
    write = store.write_json

    def full(path, value):
        if path.parent.name == "runs" and len(made) == 2:
            raise OSError(28, "No space left on device")
        write(path, value)

    with monkeypatch.context() as patch, pytest.raises(DiskError, match=r"No space left.*finished runs are kept"):
        patch.setattr(store, "write_json", full)
        settled(tmp_path)
    settled(tmp_path)
    assert len(made) == 4 and len(set(made)) == 3


def test_a_report_that_another_writes_for_ever_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_PATIENCE", 0)
    tmp_path.joinpath("runs").mkdir()
    held = claim(tmp_path / ".lock", "steppe compare")
    with pytest.raises(TakenError, match="is being written by process"):
        settled(tmp_path)
    held.free()
