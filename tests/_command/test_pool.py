import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from steppe._command.pool import Job, Pool

ROOT = Path(__file__).parents[2]


def double(value: int, tell) -> int:
    tell(0.5)
    return 2 * value


def fail(tell) -> None:
    raise ValueError("no luck")


def die(tell) -> None:
    os._exit(3)


def pid(tell) -> int:
    return os.getpid()


def sleep(tell) -> None:
    time.sleep(60)


def test_jobs_give_results_failures_and_progress_and_dead_workers_are_replaced():
    with Pool(2) as pool:
        for i in range(4):
            pool.submit(Job(f"double {i}", double, (i,)))
        pool.submit(Job("fail", fail, ()))
        pool.submit(Job("die", die, ()))
        pool.submit(Job("after", double, (21,)))
        events = list(pool.events())
    done = {event.key: event.value for event in events if event.kind == "done"}
    failed = {event.key: event.value for event in events if event.kind == "failed"}
    assert done == {"double 0": 0, "double 1": 2, "double 2": 4, "double 3": 6, "after": 42}
    assert failed["fail"].startswith("ValueError: no luck (test_pool.py:")
    assert "exit code 3" in failed["die"]
    assert sum(event.kind == "moving" for event in events) == 5
    assert [event.kind for event in events if event.key == "double 0"] == ["begun", "moving", "done"]


def test_a_worker_stays_alive_over_many_jobs():
    with Pool(1) as pool:
        for i in range(3):
            pool.submit(Job(str(i), pid, ()))
        pids = {event.value for event in pool.events() if event.kind == "done"}
    assert len(pids) == 1
    assert not _alive(pids.pop())


def test_workers_leave_when_their_parent_is_killed():
    code = """
        import os
        from steppe._command.pool import Job, Pool
        from tests._command.test_pool import pid, sleep
        pool = Pool(1)
        pool.submit(Job("pid", pid, ()))
        for event in pool.events():
            if event.kind == "done" and event.key == "pid":
                print(event.value, flush=True)
                pool.submit(Job("sleep", sleep, ()))
    """
    lines = "\n".join(line[8:] for line in code.splitlines())
    parent = subprocess.Popen([sys.executable, "-c", lines], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    worker = int(parent.stdout.readline())
    assert _alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
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
