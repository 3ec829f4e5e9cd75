"""Runs made by executors of others: the same records, lost workers, and what each refusal says."""

import concurrent.futures as cf
import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from tests.compare import forks, studies

import steppe.compare
from steppe._command import beats
from steppe._command.pool import Job
from steppe._command.ranks import InStep
from steppe.cli import main
from steppe.compare.engine import executors, luggage, remote, study
from steppe.compare.engine.spec import resolve

TINY = {"task": "tests.compare.tiny:task", "methods": ["sam"], "seeds": 2, "rho": 0.1, "half": False}


@pytest.fixture(autouse=True)
def untimed(monkeypatch):
    monkeypatch.setattr(study.cost, "measure", lambda *_: {"methods": {}})
    monkeypatch.setattr(study, "Pool", lambda size: InStep())


class Here(cf.Executor):
    """Makes each call at once, in this process; `spoil` may end one of them otherwise."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def spoil(self, job: Job, trial: int) -> None:
        """Raise instead of making the run."""

    def submit(self, fn, /, *args, **kwargs) -> cf.Future:
        future: cf.Future = cf.Future()
        try:
            if fn is remote.work:
                self.asked.append(args[1].key)
                self.spoil(args[1], args[2])
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def settled(out: Path, executor: cf.Executor | None = None, **more):
    return steppe.compare.run(executor=executor, out=str(out), **{**TINY, **more})


def records(out: Path) -> dict:
    runs = {name: json.loads((out / "runs" / name).read_text()) for name in studies.finished(out)}
    return {name: {key: run[key] for key in run.keys() - studies.TIMES} for name, run in runs.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """The records of a study made by this process alone."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "Pool", lambda size: InStep())
        patch.setattr(study.cost, "measure", lambda *_: {"methods": {}})
        settled(out)
    return records(out)


def test_an_executor_of_threads_makes_the_same_records_and_lives_on(tmp_path, alone):
    with cf.ThreadPoolExecutor(2) as threads:
        outcome = settled(tmp_path, threads, quiet=True)
        assert threads.submit(int).result() == 0
    assert records(tmp_path) == alone and not outcome.failed and outcome.report.exists()
    assert not list(tmp_path.rglob(".*")), "no claim and no word of progress is left"
    assert "on" not in json.loads((tmp_path / "spec.json").read_text())


def test_a_run_whose_worker_is_lost_is_made_again_and_thrice_lost_has_failed(tmp_path, alone, capsys):
    class Losing(Here):
        def spoil(self, job: Job, trial: int) -> None:
            if job.key.startswith("sam") and "seed1" in job.key or (job.key.startswith("base-seed") and trial < 3):
                raise OSError("worker gone")

    outcome = settled(tmp_path, made := Losing())
    assert [outcome.failed[key] for key in outcome.failed] == [
        "SAM rho=0.1 seed 1: its worker was lost, 3 times: OSError: worker gone"
    ]
    made_records = records(tmp_path)
    assert made_records == {name: each for name, each in alone.items() if name in made_records}
    assert len(made_records) == 5 and len(made.asked) == 6 + 2 + 2 * 2 + 1
    assert "a worker of the executor was lost (OSError: worker gone); its run is begun again" in capsys.readouterr().err


def test_an_executor_that_ends_is_one_sentence_and_the_same_command_goes_on(tmp_path, alone):
    class Ending(Here):
        def spoil(self, job: Job, trial: int) -> None:
            if len(self.asked) == 3:
                raise BrokenProcessPool("a child died")

    with pytest.raises(executors.ExecutorError, match=r"^the executor takes no more runs \(BrokenProcessPool: a child"):
        settled(tmp_path, Ending(), jobs=1)
    assert len(records(tmp_path)) == 2 and not list(tmp_path.rglob(".*"))
    settled(tmp_path, again := Here())
    assert records(tmp_path) == alone and len(again.asked) == 4 + 1


def test_a_failed_run_ends_no_study_and_says_where(tmp_path):
    outcome = settled(tmp_path, Here(), model="tests.compare.tiny:broken_model")
    assert len(outcome.failed) == 6
    for why in outcome.failed.values():
        assert "RuntimeError: the model is broken (tiny.py:" in why and "), on " in why


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's folder with a module and a file of data; `leave` forgets all that this process knows of it."""
    home = tmp_path / "home"
    home.mkdir()
    own = "from tests.compare import tiny\n\n\ndef task(seed):\n    return tiny.task(seed)\n"
    (home / "own_words.py").write_text(own)
    (home / "flowers.csv").write_text("a,b,kind\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(90)))
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def leave() -> None:
        sys.modules.pop("own_words", None)
        luggage._latest = None
        remote._checked.clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(home)])
        home.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(luggage, "_latest", None)
    return leave


def sent(spec, data: bool = False) -> remote.Site:
    plan = study.check(spec)
    return remote.Site(plan.spec_hash, str(Path(spec.out).absolute() / "runs"), "t", luggage.pack(spec, data))


def job(spec) -> Job:
    return Job("a", study.run.train, (spec, study.Run("base", None, 0)))


def test_a_module_of_the_users_own_travels(project, tmp_path):
    spec = resolve({**TINY, "task": "own_words:task", "out": str(tmp_path / "out")})
    site = sent(spec)
    here = remote.work(site, job(spec), 1)
    project()
    before = list(sys.path), os.getcwd()
    there = remote.work(site, job(spec), 1)
    assert here.kind == there.kind == "done", there.value
    assert {k: there.value[k] for k in here.value.keys() - studies.TIMES} == {
        k: here.value[k] for k in here.value.keys() - studies.TIMES
    }
    assert "own_words" in sys.modules and (list(sys.path), os.getcwd()) == before
    assert not Path(sys.modules["own_words"].__file__).is_relative_to(tmp_path / "home")
    sys.modules.pop("own_words")


def test_a_module_that_was_changed_since_is_read_anew_and_another_study_is_refused(project, tmp_path):
    spec = resolve({**TINY, "task": "own_words:task", "out": str(tmp_path / "out")})
    old = sent(spec)
    assert remote.work(old, job(spec), 1).kind == "done"
    with Path("own_words.py").open("a") as file:
        file.write("\n\ndef more():\n    pass\n")
    refused = remote.work(remote.Site("other", old.runs, "t", old.luggage), job(spec), 1)
    assert refused.kind == "failed" and "this worker would make another study's runs" in refused.value
    sys.modules.pop("own_words")  # a sender of its own would have the changed one
    new = sent(spec)
    assert new.spec_hash != old.spec_hash
    assert remote.work(new, job(spec), 1).kind == "done"
    sys.modules.pop("own_words")


def test_data_that_a_worker_does_not_see_is_sent_along(project, tmp_path):
    given = {"task": "table:flowers.csv", "target": "kind", "epochs": 1, "out": str(tmp_path / "out")}
    spec = resolve({**TINY, **given})
    bare, whole = sent(spec), sent(spec, data=True)
    away = resolve({**TINY, **given, "task": f"table:{Path('flowers.csv').absolute()}"})
    absolute = sent(away)
    with pytest.raises(ValueError, match="is no path below the current folder, and only such files are sent along"):
        luggage.pack(away, data=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="is larger than the 0 MB that are"):
        patch.setattr(luggage, "LIMIT", 100)
        luggage.pack(spec, data=True)
    project()
    assert remote.work(bare, job(spec), 1).paths == ["flowers.csv"]
    assert remote.work(absolute, job(away), 1).paths == [away.task.removeprefix("table:")]
    there = remote.work(whole, job(spec), 1)
    assert there.kind == "done", there.value


def test_the_data_goes_along_from_when_it_was_missed(tmp_path, capsys, monkeypatch):
    unseen = iter([["flowers.csv"]] * 2)  # by `there`, and by `work`
    packed = []
    pack = luggage.pack
    monkeypatch.setattr(luggage, "missing", lambda _: next(unseen, []))
    monkeypatch.setattr(luggage, "pack", lambda spec, data=False: packed.append(data) or pack(spec, data))
    outcome = settled(tmp_path, made := Here(), seeds=1)
    assert not outcome.failed and packed == [False, True] and len(made.asked) == 3 + 1 + 1
    assert " does not see flowers.csv: the data goes along with every run" in capsys.readouterr().err


def test_a_run_ends_when_whoever_wanted_it_has_gone(tmp_path, monkeypatch):
    spec = resolve({**TINY, "out": str(tmp_path)})
    site = sent(spec)
    held = beats.claim(site.sign, "a test")
    monkeypatch.setattr(remote, "_POLL", -1.0)
    assert remote.work(site, job(spec), 1).kind == "done"

    def going(spec, run, tell):
        held.free()
        return study.run.train(spec, run, tell)

    left = remote.work(site, Job("a", going, (spec, study.Run("base", None, 0))), 1)
    assert left.kind == "failed" and "AbandonedError: the process that wanted this run has ended" in left.value
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("on", "says"),
    [
        ("dusk", "on must be local, dask:ADDRESS or slurm:partition=...,gpus=1, got 'dusk'"),
        ("executor", "on must be local, dask:ADDRESS or slurm:partition=...,gpus=1, got 'executor'"),
        ("dask", "names no scheduler; give its address, such as dask:tcp://10.0.0.1:8786"),
        ("slurm:partitoin=a", "slurm has no option 'partitoin'; did you mean 'partition'?"),
        ("slurm:gpus=many", "slurm: 'gpus=many' is no gpus; write gpus=1"),
        ("slurm:time=0", "slurm: 'time=0' is no time; write time=60"),
        ("slurm:partition=", "slurm: 'partition=' is no partition; write partition=NAME"),
        ("slurm:cluster=mine", "slurm: cluster must be 'slurm' or 'local', got 'mine'"),
        ("slurm", "there is no Slurm here"),
        ("dask:127.0.0.1:1", "no Dask scheduler answers at 127.0.0.1:1 ("),
    ],
)
def test_where_runs_cannot_go_is_one_sentence(on, says, tmp_path, capsys, monkeypatch):
    for package in ("distributed", "submitit"):
        pytest.importorskip(package)
    monkeypatch.setattr(executors, "_PATIENCE", "0.2s")
    assert main(["compare", *"--task tests.compare.tiny:task --out".split(), str(tmp_path / "out"), "--on", on]) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.splitlines()) == 1, said


@pytest.mark.parametrize(("on", "package"), [("dask:tcp://a:1", "distributed"), ("slurm", "submitit")])
def test_an_extra_that_is_not_installed_is_named(on, package, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "steppe.compare.engine.slurm", raising=False)
    monkeypatch.delattr(steppe.compare.engine, "slurm", raising=False)
    assert main(["compare", *"--task tests.compare.tiny:task --out".split(), str(tmp_path / "out"), "--on", on]) == 2
    extra = on.partition(":")[0]
    assert f"needs {package}, which is not installed: pip install 'steppe[{extra}]'" in capsys.readouterr().err


def test_workers_with_another_steppe_or_without_are_refused():
    class Old(Here):
        def submit(self, fn, /, *args, **kwargs):
            future: cf.Future = cf.Future()
            future.set_result(remote.greet() | {"steppe": "0.0.1", "host": "node7"})
            return future

    class Bare(Here):
        def submit(self, fn, /, *args, **kwargs):
            raise ModuleNotFoundError("No module named 'steppe'")

    with pytest.raises(ValueError, match="node7, a worker of the executor, has steppe 0.0.1 and this is"):
        steppe.compare.run(executor=Old(), **TINY)
    with pytest.raises(ValueError, match=r"cannot run steppe \(ModuleNotFoundError: No module named 'steppe'\)"):
        steppe.compare.run(executor=Bare(), **TINY)


def test_a_gpu_is_asked_of_the_workers_and_not_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "greet", lambda: {"steppe": steppe.__version__, "host": "node7", "cuda": False})
    with pytest.raises(ValueError, match="'cuda' is asked for but node7, a worker of the executor, sees no CUDA"):
        steppe.compare.run(executor=Here(), device="cuda", **TINY)
    monkeypatch.setattr(remote, "greet", lambda: {"steppe": steppe.__version__, "host": "node7", "cuda": True})
    with executors.opened(resolve({**TINY, "on": "executor"}), Here()) as (spec, engine):
        assert spec.device == engine.device == "cuda" and engine.size() == executors._MANY
        study.check(spec.model_copy(update={"out": str(tmp_path)}))
    pytest.importorskip("submitit")
    on = "slurm:cluster=local,gpus=1"
    with executors.opened(resolve({**TINY, "on": on, "out": str(tmp_path)})) as (spec, engine):
        assert spec.device == "cuda"


def killing_once(folder: Path, monkeypatch) -> dict:
    """A study of three runs, untimed, whose first worker to build a model is killed."""
    monkeypatch.setattr(study._Session, "cost", lambda *_: None)
    monkeypatch.chdir(folder)
    (folder / "dies").write_text(str(os.getpid()))
    return {**TINY, "seeds": 1, "model": "tests.compare.tiny:mortal_model", "quiet": True}


def test_dask_with_one_of_two_workers_killed_makes_the_same_records(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    given = killing_once(tmp_path, monkeypatch)
    with forks.dask(2) as address:
        outcome = steppe.compare.run(on=f"dask:{address}", out="there", **given)
    assert not outcome.failed and not Path("dies").exists()
    steppe.compare.run(out="here", **given)
    assert records(tmp_path / "there") == records(tmp_path / "here") and len(records(tmp_path / "here")) == 3


def test_jobs_of_submitit_with_one_killed_make_the_same_records(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    given = killing_once(tmp_path, monkeypatch)
    monkeypatch.setattr("submitit.local.local.start_controller", forks.Controller)
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # for a disk that is slow to show a result
    outcome = steppe.compare.run(on="slurm:cluster=local", jobs=2, out="there", **given)
    assert not outcome.failed and not Path("dies").exists()
    steppe.compare.run(out="here", **given)
    assert records(tmp_path / "there") == records(tmp_path / "here") and len(records(tmp_path / "here")) == 3
    logs = [path.name for path in (tmp_path / "there" / "jobs").iterdir()]
    assert any(name.endswith("_log.err") for name in logs) and not any("result" in name for name in logs)
