"""A job on a worker of somebody's executor: the same modules, data and hash as where it was sent from, or a refusal.

What a job raises comes back as an event, so that an exception of the future itself means that its worker was lost.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import steppe
from steppe._command import beats
from steppe._command.devices import threads, usable_device
from steppe._command.pool import Event, Job, attempt
from steppe.compare.engine import luggage
from steppe.compare.engine.luggage import Luggage
from steppe.compare.engine.spec import Spec

_ALONE = threading.Lock()  # torch's generator, the current folder and the modules are one for all threads
_POLL = 5.0
_checked: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Site:
    """Where jobs come from.

    Args:
        spec_hash: of the study.
        runs: its folder of runs; a worker that sees it leaves word there of how far it is.
        token: of the process that sent the job, which holds the claim `sign` while it lives.
        luggage: what goes along.
    """

    spec_hash: str
    runs: str
    token: str
    luggage: Luggage

    @property
    def sign(self) -> Path:
        """The claim that shows that the sender lives."""
        return Path(self.runs) / f".sender-{self.token}.claim"

    def progress(self, key: str) -> Path:
        """The file that says how far a job is."""
        return Path(self.runs) / f".{key}.{self.token}.share"


@dataclass(frozen=True)
class Missing:
    """What a worker says that does not see the data."""

    host: str
    paths: list[str]


def greet() -> dict[str, Any]:
    """What there is on a worker."""
    return {
        "steppe": steppe.__version__, "python": platform.python_version(), "host": socket.gethostname(),
        "cuda": torch.cuda.is_available(),
    }  # fmt: skip


def work(site: Site, job: Job, trial: int) -> Event | Missing:
    """Do a job of a site's whose first argument is the study's settings.

    `trial` counts its tries, so that no two calls are the same to an executor that keeps results.
    """
    with _ALONE, luggage.there(site.luggage, site.spec_hash):
        if unseen := luggage.missing(site.luggage):
            return Missing(socket.gethostname(), unseen)
        try:
            with threads(1):  # as everywhere: sums of several threads are other sums
                told = _Told(site, job.key)
                event = attempt(Job(job.key, _checking, (site, job.function, *job.arguments)), told.hear)
        finally:
            site.progress(job.key).unlink(missing_ok=True)
    return event if event.kind == "done" else Event("failed", job.key, f"{event.value}, on {socket.gethostname()}")


def _checking(site: Site, function: Callable[..., Any], spec: Spec, *rest: Any) -> Any:
    usable_device(spec.device)
    seen = site.spec_hash, site.luggage.digest
    if seen not in _checked:
        if spec.hash() != site.spec_hash:
            raise ValueError(
                "this worker would make another study's runs: its data, its model or its steppe "
                f"({steppe.__version__}) differs from the sender's; install the same, and keep the data in a folder "
                "that both see"
            )
        _checked.add(seen)
    return function(spec, *rest)


class AbandonedError(Exception):
    """Whoever sent the job is gone."""


class _Told:
    """Leaves word of how far a job is where the sender's folder is seen, and ends it when the sender has gone."""

    def __init__(self, site: Site, key: str) -> None:
        self._site, self._file = site, site.progress(key)
        self._shared = beats.holds(site.sign)
        self._looked = time.monotonic()
        self._write(0.0)

    def hear(self, event: Event) -> None:
        if self._shared and time.monotonic() > self._looked + _POLL:
            self._looked = time.monotonic()
            if not beats.holds(self._site.sign):
                raise AbandonedError("the process that wanted this run has ended")
        self._write(event.value)

    def _write(self, share: float) -> None:
        if self._shared:
            try:
                beside = self._file.with_suffix(f".{os.getpid()}.tmp")
                beside.write_text(repr(float(share)))
                os.replace(beside, self._file)
            except OSError:
                self._shared = False  # the run goes on without
