import multiprocessing
import os
import sys
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

import pytest

from steppe._command.pool import Job, Pool, warm_up


def double(value: int, tell) -> int:
    tell(0.5)
    return 2 * value


def fail(tell) -> None:
    raise ValueError("no luck")


def die(tell) -> None:
    os._exit(3)


def pid(tell) -> int:
    return os.getpid()


def variable(name: str, tell) -> str | None:
    return os.environ.get(name)


def begets(tell) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    return child.exitcode


def served_with(tell) -> list[str]:
    return forkserver._forkserver._preload_modules


KEPT = []


def keeps_a_semaphore(tell) -> str:
    KEPT.append(multiprocessing.get_context("spawn").Semaphore())
    return KEPT[0]._semlock.name.lstrip("/")


def sleep(tell) -> None:
    time.sleep(60)


def test_jobs_give_results_failures_and_progress_and_dead_workers_are_replaced():
    with Pool(2) as pool:
        for i in range(4):
            pool.submit(Job(f"pid {i}", pid, ()))
            pool.submit(Job(f"double {i}", double, (i,)))
        pool.submit(Job("fail", fail, ()))
        pool.submit(Job("die", die, ()))
        pool.submit(Job("after", double, (21,)))
        events = list(pool.events())
    done = {event.key: event.value for event in events if event.kind == "done"}
    failed = {event.key: event.value for event in events if event.kind == "failed"}
    pids = {done.pop(f"pid {i}") for i in range(4)}
    assert len(pids) <= 2, "a worker stays alive over many jobs"
    assert not any(_alive(each) for each in pids)
    assert done == {"double 0": 0, "double 1": 2, "double 2": 4, "double 3": 6, "after": 42}
    assert failed["fail"].startswith("ValueError: no luck (test_pool.py:")
    assert "exit code 3" in failed["die"]
    assert sum(event.kind == "moving" for event in events) == 5
    assert [event.kind for event in events if event.key == "double 0"] == ["begun", "moving", "done"]


def has_a_worker(say: Connection) -> None:
    pool = Pool(1)
    pool.submit(Job("pid", pid, ()))
    for event in pool.events():
        if event.kind == "done" and event.key == "pid":
            say.send(event.value)
            pool.submit(Job("sleep", sleep, ()))


def test_workers_have_the_environment_of_their_parent_as_it_is_when_they_begin(monkeypatch):
    warm_up()
    monkeypatch.setenv("STEPPE_TRIED", "late")
    with Pool(1) as pool:
        pool.submit(Job("variable", variable, ("STEPPE_TRIED",)))
        assert [event.value for event in pool.events() if event.kind == "done"] == ["late"]


@pytest.mark.parametrize(("said", "threads"), [(None, "1"), ("3", "3")])
def test_workers_have_one_thread_outside_of_torch_too(monkeypatch, said, threads):
    """Beside one worker for each core, numpy in a script had as many threads as there are cores in each of them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    with Pool(1) as pool:
        pool.submit(Job("variable", variable, ("OMP_NUM_THREADS",)))
        assert [event.value for event in pool.events() if event.kind == "done"] == [threads]
    assert os.environ.get("OMP_NUM_THREADS") == said


def test_workers_do_not_run_the_users_own_file(tmp_path, monkeypatch):
    """Of a script that calls steppe.compare.run at its top every worker began a comparison, and died of it."""
    script = tmp_path / "study.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    program = ModuleType("__main__")
    program.__file__ = str(script)
    monkeypatch.setitem(sys.modules, "__main__", program)
    with Pool(1) as pool:
        assert sys.modules["__main__"] is program
        pool.submit(Job("double", double, (21,)))
        assert [event.value for event in pool.events() if event.kind == "done"] == [42]
    assert not (tmp_path / "ran").exists()


def test_workers_may_have_children():
    """A script's DataLoader with workers of its own: daemons are not allowed to have any."""
    with Pool(1) as pool:
        pool.submit(Job("begets", begets, ()))
        assert [event.value for event in pool.events() if event.kind == "done"] == [0]


def test_the_children_of_workers_are_forked_from_a_process_with_torch():
    """As Python 3.14 starts those of a DataLoader: each imported torch anew, in every epoch."""
    with Pool(1) as pool:
        pool.submit(Job("served", served_with, ()))
        assert [event.value for event in pool.events() if event.kind == "done"] == [["steppe._command.preload"]]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="semaphores are not seen here")
def test_workers_with_nothing_to_do_leave_in_order():
    """What the workers of a script's DataLoader shared stayed, which Python told of at the end of a comparison."""
    with Pool(1) as pool:
        pool.submit(Job("keeps", keeps_a_semaphore, ()))
        (name,) = [event.value for event in pool.events() if event.kind == "done"]
        assert Path(f"/dev/shm/sem.{name}").exists()
    assert not Path(f"/dev/shm/sem.{name}").exists()


def test_workers_leave_when_their_parent_is_killed():
    hear, say = multiprocessing.get_context("spawn").Pipe(duplex=False)
    parent = multiprocessing.get_context("spawn").Process(target=has_a_worker, args=(say,))
    parent.start()
    worker = hear.recv()
    assert _alive(worker)
    parent.kill()
    parent.join()
    for _ in range(1200):
        if not _alive(worker):
            break
        time.sleep(0.1)
    assert not _alive(worker)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")
    return not (state.exists() and ") Z" in state.read_text())
