"""What stands for CUDA graphs where there is no GPU, and a problem for looks that are recorded."""

import torch

from steppe import _recorded, views
from steppe._randomness import Randomness


class Tape:
    """Stands for CUDA graphs: what was recorded, and how often it was replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def captured(self, run, back):
        self.recorded += 1
        back()
        run()  # as libraries set themselves up
        back()
        loss, grads = run()

        def again():
            self.replayed += 1
            _recorded._present.recording = True  # no Python runs in a real one, and so nobody counts
            for mine, new in zip((loss, *grads), self._of(run), strict=True):
                if mine is not None:
                    mine.copy_(new)
            _recorded._present.recording = False

        with torch.no_grad():
            for mine in (loss, *grads):
                if mine is not None:
                    mine.fill_(float("nan"))  # nothing is computed while it is recorded
        return (loss, grads), again

    @staticmethod
    def _of(run):
        with torch.enable_grad():
            loss, grads = run()
        return loss, *grads


def taped(monkeypatch):
    """A tape in the place of the device."""
    tape = Tape()
    monkeypatch.setattr(_recorded, "captured", tape.captured)
    monkeypatch.setattr(views, "available", lambda: True)
    monkeypatch.setattr(_recorded, "recordable", lambda tensor: True)
    monkeypatch.setattr(_recorded, "of_the_host", lambda: Randomness((), (), False))  # dropout draws from the CPU's
    return tape


def data(count=12, size=8, dtype=torch.float64):
    torch.manual_seed(3)
    return [(torch.randn(size, 5, dtype=dtype), torch.randint(3, (size,))) for _ in range(count)]
