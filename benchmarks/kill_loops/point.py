"""One point: a run that is killed, what it left, and the run that goes on from there, against the undisturbed one."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import Process, get_context
from pathlib import Path
from typing import Any

import torch

from .loop import Loop
from .watch import REGIONS, STEPS, Board, Kill, Watch

PATIENCE, ATTEMPTS = 120.0, 50
WRITING = 0.75  # share of the kills in a checkpoint's saving that come when a file is there already
# Of 20 points: inside a region at a drawn call, the process by itself; "anywhere": from outside after a drawn time.
KINDS = (
    "ascent anywhere checkpoint ascent update anywhere ascent checkpoint anywhere ascent "
    "anywhere checkpoint ascent update ascent anywhere checkpoint ascent anywhere update"
).split()


@dataclass
class Whole:
    """An undisturbed run: its folder, boards (a rank each) and states at the end."""

    folder: Path
    boards: list[Board]
    finals: list[dict[str, Any]]


@dataclass
class Outcome:
    """What happened at a point."""

    loop: str
    method: str
    kind: str
    rank: int
    step: int = -1
    region: str = ""
    checkpoints: list[int] = field(default_factory=list)
    loaded: int = -1
    unfinished: int = 0
    unreadable: int = 0
    torn_loaded: bool = False
    differs: list[str] = field(default_factory=list)


# Processes


def start(
    loop: Loop, folder: Path, method: str, kill: Kill | None = None, victim: int = 0, count: bool = False
) -> tuple[list[Process], list[Board]]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meet").unlink(missing_ok=True)
    boards = [Board() for _ in range(loop.ranks)]
    processes = [
        get_context("fork").Process(
            target=_child, args=(loop, folder, method, rank, Watch(board, kill if rank == victim else None, count))
        )
        for rank, board in enumerate(boards)
    ]
    for process in processes:
        process.start()
    return processes, boards


def _child(loop: Loop, folder: Path, method: str, rank: int, watch: Watch) -> None:
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    watch.install()
    torch.save(loop.train(folder, method, watch, rank), folder / f"rank-{rank}.final")
    os._exit(0)  # without the orderly shutdown of a process group


def wait(processes: Sequence[Process]) -> bool:
    """Until all have ended; when one dies the others are killed, as torchrun does. True: all reached the end."""
    deadline = time.monotonic() + PATIENCE
    while any(p.is_alive() for p in processes):
        if any(p.exitcode not in (None, 0) for p in processes) or time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.001)
    for process in processes:
        process.join()
    return all(p.exitcode == 0 for p in processes)


def finals(loop: Loop, folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank-{rank}.final", weights_only=False) for rank in range(loop.ranks)]


def undisturbed(loop: Loop, folder: Path, method: str) -> Whole:
    processes, boards = start(loop, folder, method, count=True)
    if not wait(processes):
        raise SystemExit(f"the undisturbed run of {loop.title}, {method}, failed:\n{_log(folder)}")
    return Whole(folder, boards, finals(loop, folder))


def _log(folder: Path) -> str:
    return "".join(path.read_text()[-3000:] for path in sorted(folder.glob("log-*.txt"))).strip()


# Equality


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, type for type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bytes(a) == _bytes(b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(repr(a) == repr(b)) if hasattr(a, "__array__") else bool(a == b)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# A point


def point(loop: Loop, folder: Path, method: str, kind: str, whole: Whole, draw: random.Random) -> Outcome:
    out = Outcome(loop.title, method, kind, 0 if kind == "checkpoint" else draw.randrange(loop.ranks))
    killed = _killed_anywhere if kind == "anywhere" else _killed_inside
    boards = killed(loop, folder, whole, draw, out)
    board = boards[out.rank]
    out.step, out.region = board.step, board.region
    _look_at_checkpoints(loop, folder, whole, out)
    for rank, mine in enumerate(boards):
        _compare_history(f"killed run, rank {rank}", mine, whole.boards[rank], out)
    _resume(loop, folder, whole, out)
    if not out.differs:
        shutil.rmtree(folder)
    return out


def _killed_inside(loop: Loop, folder: Path, whole: Whole, draw: random.Random, out: Outcome) -> list[Board]:
    board = whole.boards[out.rank]
    calls = board.calls[out.kind]
    step = draw.choice([t for t, n in enumerate(calls) if n])
    first = board.before_file[step] if out.kind == "checkpoint" and draw.random() < WRITING else 0
    kill = Kill(out.kind, step, draw.randint(first + 1, calls[step]))
    processes, boards = start(loop, folder, out.method, kill, out.rank)
    wait(processes)
    if processes[out.rank].exitcode != -signal.SIGKILL:
        out.differs.append(f"{kill} was never reached: exit code {processes[out.rank].exitcode}")
    return boards


def _killed_anywhere(loop: Loop, folder: Path, whole: Whole, draw: random.Random, out: Outcome) -> list[Board]:
    """A drawn time after the beginning of a drawn step; again, earlier, where the run was over by then."""
    step, delay = draw.randrange(STEPS), draw.uniform(0, 2 * whole.boards[0].pace)
    for attempt in range(ATTEMPTS):
        processes, boards = start(loop, folder, out.method)
        while boards[out.rank].step < max(0, step - attempt) and processes[out.rank].is_alive():
            time.sleep(0.0001)
        time.sleep(delay / (1 + attempt))
        processes[out.rank].kill()
        wait(processes)
        if processes[out.rank].exitcode == -signal.SIGKILL:
            return boards
        shutil.rmtree(folder)
    raise SystemExit(f"{loop.title} is over before it can be killed")


def _look_at_checkpoints(loop: Loop, folder: Path, whole: Whole, out: Outcome) -> None:
    """Each that is there by the loop's own rule holds what the undisturbed run's does; the rest is unfinished."""
    there, right = loop.checkpoints(folder), loop.checkpoints(whole.folder)
    out.checkpoints = sorted(there)
    out.differs += [f"torn: {there[t].name}" for t in there if not _equal(loop, there[t], right.get(t))]
    left = loop.unfinished(folder)
    out.unfinished, out.unreadable = len(left), sum(not _equal(loop, path, path) for path in left)


def _equal(loop: Loop, path: Path, right: Path | None) -> bool:
    try:
        return right is not None and same(loop.read(path), loop.read(right))
    except Exception:  # of a torn file: whatever its reader raises
        return False


def _compare_history(who: str, board: Board, right: Board, out: Outcome) -> None:
    """Decisions and losses, of the steps that this run has done."""
    done, expected = board.history(), right.history()
    wrong = [t for t, (d, loss) in done.items() if (d, loss.hex()) != (expected[t][0], expected[t][1].hex())]
    if wrong:
        out.differs.append(f"{who}: decisions or losses of steps {wrong}")


def _resume(loop: Loop, folder: Path, whole: Whole, out: Outcome) -> None:
    processes, boards = start(loop, folder, out.method)
    if not wait(processes):
        out.differs.append("the resumed run failed: " + _log(folder).rpartition("\n")[2])
        return
    out.loaded = boards[0].loaded
    out.torn_loaded = out.loaded != max(out.checkpoints, default=-1) or any("torn" in d for d in out.differs)
    for rank, (board, final) in enumerate(zip(boards, finals(loop, folder), strict=True)):
        _compare_history(f"resumed run, rank {rank}", board, whole.boards[rank], out)
        if set(board.history()) != set(range(max(out.loaded, 0), STEPS)):
            out.differs.append(f"rank {rank} ran the steps {sorted(board.history())}")
        out.differs += [f"rank {rank}: {k}" for k, v in whole.finals[rank].items() if not same(final[k], v)]
    there, right = loop.checkpoints(folder), loop.checkpoints(whole.folder)
    if set(there) != set(right) or not all(_equal(loop, there[t], right[t]) for t in right):
        out.differs.append("checkpoints at the end")


def share(outcomes: Sequence[Outcome], region: str) -> int:
    """How many kills landed there."""
    assert region in (*REGIONS, "")
    return sum(out.region == region for out in outcomes)
