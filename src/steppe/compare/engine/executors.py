"""Where runs go: this machine, or an executor of the standard interface that somebody else keeps.

`--on local` is this machine's own processes. `--on dask:ADDRESS` and `--on slurm:partition=...` make an executor of
what `distributed` and `submitit` offer; from Python, `steppe.compare.run(executor=...)` takes any
`concurrent.futures.Executor`.
"""

from __future__ import annotations

import concurrent.futures as cf
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import steppe
from steppe._command.devices import usable_cores
from steppe._command.lookup import nearest
from steppe.compare.engine import remote
from steppe.compare.engine.spec import Spec

LOCAL, GIVEN = "local", "executor"
_MANY = 64
"""Runs at once where an executor does not say how many it has room for."""
_PATIENCE = "10s"
_GREETING = 600.0
_AGAIN = 5.0


class ExecutorError(ValueError):
    """An executor failed; the message is one sentence."""


@dataclass(frozen=True)
class Engine:
    """An executor, how many runs it has room for by now, and the device on which its workers compute."""

    name: str
    executor: cf.Executor
    size: Callable[[], int]
    device: str


@contextmanager
def opened(spec: Spec, given: cf.Executor | None = None) -> Iterator[tuple[Spec, Engine | None]]:
    """The settings with the device that runs are made on, and the engine that makes them; None: this machine.

    An executor that is given, from Python, is not shut down.
    """
    kind, _, rest = spec.on.partition(":")
    if given is None:
        check_name(spec.on)
    if given is None and spec.on == LOCAL:
        yield spec, None
        return
    if spec.parallel:
        raise ValueError("parallel spreads one run over processes that torchrun starts; it goes with on = 'local'")
    with ExitStack() as closing:
        if given is not None:
            room = getattr(given, "_max_workers", None) or _MANY
            engine = _greeted("the executor", given, lambda: spec.jobs or room, spec.device)
        elif kind == "dask":
            engine = _dask(spec, rest, closing)
        else:
            engine = _slurm(spec, rest, closing)
        yield spec.model_copy(update={"device": engine.device}), engine


def check_name(on: str) -> None:
    """Refuse what names no engine, before anything is read."""
    kind, colon, rest = on.partition(":")
    if kind == "dask" and not rest:
        raise ValueError(f"on = {on!r} names no scheduler; give its address, such as dask:tcp://10.0.0.1:8786")
    if kind == "slurm" and (rest or not colon):
        SlurmOptions.read(rest)
    elif kind != "dask" and on != LOCAL:
        raise ValueError(f"on must be local, dask:ADDRESS or slurm:partition=...,gpus=1, got {on!r}")


def _greeted(name: str, executor: cf.Executor, size: Callable[[], int], device: str) -> Engine:
    """Ask one of the workers what there is."""
    try:
        found = executor.submit(remote.greet).result(_GREETING)
    except cf.TimeoutError:
        raise ValueError(f"no worker of {name} answered within {_GREETING / 60:.0f} minutes; start some") from None
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"a worker of {name} cannot run steppe ({why}); install the same steppe there") from error
    if found["steppe"] != steppe.__version__:
        raise ValueError(
            f"{found['host']}, a worker of {name}, has steppe {found['steppe']} and this is {steppe.__version__}; "
            "install the same"
        )
    if device != "cpu" and device != "auto" and not found["cuda"]:
        raise ValueError(f"device {device!r} is asked for but {found['host']}, a worker of {name}, sees no CUDA device")
    auto = "cuda" if found["cuda"] else "cpu"
    return Engine(name, executor, size, auto if device == "auto" else device)


def _dask(spec: Spec, address: str, closing: ExitStack) -> Engine:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("--on dask needs distributed, which is not installed: pip install 'steppe[dask]'") from None
    where: dict[str, Any] = {"scheduler_file": address} if address.endswith(".json") else {"address": address}
    try:
        client = closing.enter_context(Client(**where, timeout=_PATIENCE, set_as_default=False))
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"no Dask scheduler answers at {address} ({why}); start one with `dask scheduler`, and workers with "
            "`dask worker ADDRESS --nthreads 1`"
        ) from error
    executor = client.get_executor(pure=False)
    size = _now_and_then(lambda: spec.jobs or len(client.nthreads()))
    return _greeted(f"dask:{address}", executor, size, spec.device)


def _now_and_then(count: Callable[[], int]) -> Callable[[], int]:
    """How many workers there are, at least one, asked for no more often than every few seconds."""
    known = [0.0, 0.0]

    def ask() -> int:
        if not known[1] or time.monotonic() > known[0] + _AGAIN:
            known[:] = time.monotonic(), max(1, count())
        return int(known[1])

    return ask


@dataclass(frozen=True)
class SlurmOptions:
    """What may stand behind `slurm:`; each is what `sbatch` calls so, but `time` (minutes) and `mem` (GB).

    A run with GPUs computes there. The cluster "local" tries the same with processes of this machine.
    """

    partition: str | None = None
    gpus: int = 0
    cpus: int = 1
    mem: float | None = None
    time: int = 60
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cluster: str = "slurm"

    @classmethod
    def read(cls, text: str) -> SlurmOptions:
        """The options in `partition=a,gpus=1`."""
        found: dict[str, Any] = {}
        for pair in filter(None, text.split(",")):
            name, equals, value = pair.partition("=")
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"slurm has no option {name!r}; {nearest(name, cls.__dataclass_fields__)}")
            kind = {"gpus": int, "cpus": int, "time": int, "mem": float}.get(name, str)
            try:
                found[name] = kind(value)
            except ValueError:
                value = ""
            if not value or (kind is not str and found[name] < (name != "gpus")):
                raise ValueError(f"slurm: {pair!r} is no {name}; write {name}={_LIKE.get(name, 'NAME')}") from None
        if found.get("cluster", "slurm") not in ("slurm", "local"):
            raise ValueError(f"slurm: cluster must be 'slurm' or 'local', got {found['cluster']!r}")
        return cls(**found)

    def parameters(self) -> dict[str, Any]:
        """As submitit calls them."""
        common = {
            "name": "steppe", "timeout_min": self.time, "mem_gb": self.mem, "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus or None,
        }  # fmt: skip
        own = ("partition", "account", "qos", "constraint") if self.cluster == "slurm" else ()
        common |= {f"slurm_{name}": getattr(self, name) for name in own}
        return {name: value for name, value in common.items() if value is not None}


_LIKE = {"gpus": "1", "cpus": "4", "mem": "16", "time": "60"}


def _slurm(spec: Spec, text: str, closing: ExitStack) -> Engine:
    options = SlurmOptions.read(text)
    try:
        from steppe.compare.engine import slurm
    except ImportError:
        raise ValueError("--on slurm needs submitit, which is not installed: pip install 'steppe[slurm]'") from None
    folder = Path(spec.out).absolute() / "jobs"
    try:
        executor = closing.enter_context(slurm.Submitted(folder, options))
    except RuntimeError as error:
        raise ValueError(f"there is no Slurm here ({error}); start from a machine that has srun and sbatch") from error
    device = "cuda" if options.gpus else "cpu"
    if spec.device not in ("auto", device):
        raise ValueError(f"device = {spec.device!r} does not go with {options.gpus} GPUs a run; write slurm:gpus=1")
    most = usable_cores() if options.cluster == "local" else _MANY
    return Engine(f"slurm ({options.cluster})", executor, lambda: spec.jobs or most, device)
