"""A probe in a host's callbacks: it is open from the first micro-batch of a step to just before the optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steppe.diagnostics.probe import Probe


class Probing:
    """Opens and closes a probe on a method that the host makes later, and `sharp` gives when the first step begins.

    `log` is called with what one step has shown, by name; `settings` are those of :class:`steppe.Probe`.
    """

    def __init__(
        self, sharp: Callable[[], Any], log: Callable[[dict[str, float]], Any], settings: dict[str, Any]
    ) -> None:
        self._sharp, self._log, self._settings = sharp, log, settings
        self.probe: Probe | None = None
        self._open = False

    def begin(self) -> None:
        """A step begins (or goes on: its further micro-batches change nothing)."""
        sharp = self._sharp()
        if self.probe is None or self.probe.sharp is not sharp:
            self.probe = Probe(sharp, **self._settings)
        if not self._open:
            self._open = True
            self.probe.__enter__()

    def end(self) -> None:
        """The gradient is there, and the optimizer has not stepped."""
        if self.probe is None or not self._open:
            return
        self._open, known = False, self.probe.count
        self.probe.__exit__(None, None, None)
        if self.probe.count > known:
            latest = self.probe.records[-1]
            self._log({f"{self.probe.prefix}{name}": value for name, value in latest.items() if name != "step"})

    def drop(self) -> None:
        """The training ends within a step: the method's own parts are put back, and nothing is noted."""
        if self.probe is not None and self._open:
            self._open = False
            self.probe.__exit__(InterruptedError, InterruptedError(), None)
