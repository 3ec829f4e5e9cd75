"""The harness behind `steppe compare`. Needs the extra `study`: pip install 'steppe[study]'.

A task of your own is a function of the seed that returns a `Task`; `steppe compare --task my_module:my_task` runs it.

From Python, `steppe.compare.run(task="digits-few", methods=["sam"], executor=executor)` is the same command.
"""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steppe.compare.data.examples import Split, Task
from steppe.compare.data.metrics import Metric

if TYPE_CHECKING:
    from steppe.compare.engine.study import Outcome

__all__ = ["Metric", "Split", "Task", "run"]


def run(
    *, executor: Executor | None = None, config: str | Path | None = None, quiet: bool = False, **settings: Any
) -> Outcome:
    """What `steppe compare` does, from Python.

        client = distributed.Client("tcp://10.0.0.1:8786")
        outcome = steppe.compare.run(task="my_module:my_task", methods=["sam"], executor=client.get_executor())

    Runs that are kept in the results folder are not made again. Executors make one run at a time in each of their
    processes; `jobs` says how many runs they get at once where they do not say so themselves.

    Args:
        executor: makes the runs: anything that has the interface of `concurrent.futures.Executor`, as those of Dask,
            parsl, executorlib and MPI have; it is not shut down. None: processes of this machine, or what `on` says.
        config: a TOML file with the same settings; those given here win.
        quiet: say nothing of the progress.
        settings: the command's flags, with `_` for `-`.

    Returns:
        The summary, the report's path, and what failed why.

    Raises:
        ValueError: one sentence about the first thing that cannot be.
    """
    from rich.console import Console

    from steppe.compare import screen
    from steppe.compare.engine import executors, parallel, study
    from steppe.compare.engine.spec import resolve

    given = {"on": executors.GIVEN, **settings} if executor is not None else settings
    spec = parallel.begin(resolve(given, Path(config) if config else None))
    with executors.opened(spec, executor) as (settled, engine):
        plan = study.check(settled)
        with screen.on(Console(stderr=True, quiet=quiet), plan) as shown:
            return study.compare(plan, shown, engine)
