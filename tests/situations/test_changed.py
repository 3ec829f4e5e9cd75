"""What a loss changes by a method or a kernel, and binds nowhere, moves once a step too."""

from __future__ import annotations

import logging.handlers
import random
from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.situations.centred import Centred, batches, compare
from torch import Tensor, nn

import steppe


class InPlace(Centred):
    """StyleGAN's mean of path lengths: of an object that has no other state."""

    def centre(self, out: Tensor) -> Any:
        here = self.state.clone()
        self.state.mul_(0.5).add_(out.mean(0))
        return here


class ByKernel(Centred):
    def begun(self) -> Any:
        return torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def centre(self, out: Tensor) -> Any:
        here = self.state[0].clone()
        nn.functional.batch_norm(out, *self.state, training=True, momentum=0.5)
        return here


class ByData(Centred):
    """More than what is always copied."""

    def begun(self) -> Any:
        return torch.zeros(3000, 3, dtype=torch.float64)

    def centre(self, out: Tensor) -> Any:
        here = self.state[0].clone()
        self.state.data[0] = here / 2 + out.mean(0)
        return here


class Labels(Centred):
    def begun(self) -> Any:
        return Counter()

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor([self.state[k] / 10 for k in range(3)])
        self.state.update(out.argmax(1).tolist())
        return here


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[int] = Counter()

    def forward(self, out: Tensor) -> Tensor:
        here = torch.tensor([self.seen[k] / 10 for k in range(3)])
        self.seen.update(out.argmax(1).tolist())
        return here


class InAModule(Centred):
    def begun(self) -> Any:
        return Counting()

    def centre(self, out: Tensor) -> Any:
        return self.state(out)


class Met(Centred):
    def begun(self) -> Any:
        return set()

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor([float(k in self.state) for k in range(3)])
        for k in out.argmax(1).tolist():
            self.state.add(k)
        return here


class ByArray(Centred):
    def begun(self) -> Any:
        return np.zeros(3)

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor(self.state / 10)
        np.add.at(self.state, out.argmax(1).numpy(), 1)
        return here


class Turning(Centred):
    def begun(self) -> Any:
        return deque([0.0, 1.0, 2.0])

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor(list(self.state))
        self.state.rotate(1)
        return here


class Shuffled(Turning):
    def begun(self) -> Any:
        return [0.0, 1.0, 2.0]

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor(self.state)
        random.shuffle(self.state)
        return here


class OfManyClasses(Centred):
    def begun(self) -> Any:
        return dict.fromkeys(range(100), 0.0)

    def centre(self, out: Tensor) -> Any:
        here = torch.tensor([self.state[k] for k in range(3)])
        for k, x in enumerate(out.mean(0).tolist()):
            self.state[k] = self.state[k] / 2 + x
        return here


class Reservoir(Centred):
    """Experience replay: a list that grows until it is full."""

    def begun(self) -> Any:
        return []

    def centre(self, out: Tensor) -> Any:
        here = sum(self.state) / 10 if self.state else 0.0
        for x in out[:3]:
            if len(self.state) < 8:
                self.state.append(x)
            else:
                self.state[random.randrange(8)] = x
        return here


class Meter:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        self.total, self.count = self.total + value, self.count + count


class Meters(Centred):
    """As the loggers of many training scripts: objects in a dict."""

    def begun(self) -> Any:
        return defaultdict(Meter)

    def centre(self, out: Tensor) -> Any:
        here = self.state["mean"].total / max(1, self.state["mean"].count)
        self.state["mean"].update(float(out.sum()), len(out))
        return torch.tensor([here, 0.0, 0.0])


class OnALayer(Centred):
    """At an attribute of a module whose class is torch's, which keeps what it moves by itself in buffers."""

    def begun(self) -> Any:
        self.model.mean = torch.zeros(3, dtype=torch.float64)

    def centre(self, out: Tensor) -> Any:
        here = self.model.mean
        self.model.mean = here / 2 + out.mean(0)
        return here


KINDS = (
    InPlace,
    OnALayer,
    ByKernel,
    ByData,
    Labels,
    InAModule,
    Met,
    ByArray,
    Turning,
    Shuffled,
    OfManyClasses,
    Reservoir,
    Meters,
)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_pass_at_the_weights_left(kind: type[Centred]) -> None:
    compare(kind)


class Shards(Centred):
    """Writes what it has seen, two lines a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines, self.number = folder, 0, 0
        self.file = (folder / "0").open("w")
        super().__init__()

    def centre(self, out: Tensor) -> Any:
        self.file.write("seen\n")
        self.lines += 1
        if self.lines == 2:
            self.file.close()
            self.lines, self.number = 0, self.number + 1
            self.file = (self.folder / str(self.number)).open("w")
        return 0.0


def test_a_file_that_was_closed_is_not_put_back(tmp_path: Path) -> None:
    """It ended with "I/O operation on closed file"."""
    world = Shards(tmp_path)
    sharp = steppe.SAM(world.model, world.optimizer, rho=0.1)
    for batch in batches():
        sharp.backward(world.loss, batch)
        world.optimizer.step()
    assert (world.lines, world.number) == (1, 2) and not world.file.closed
    world.file.close()


class Log(logging.handlers.RotatingFileHandler):
    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)


def test_a_log_that_begins_another_file_goes_on(tmp_path: Path) -> None:
    """Of what logs hold nothing is the loss's: the place in the file was put back and the file was not."""
    log = Log(tmp_path / "log", maxBytes=60, backupCount=9)

    class Told(Centred):
        def centre(self, out: Tensor) -> Any:
            log.emit(logging.LogRecord("a", logging.INFO, "", 0, "twenty letters long", (), None))
            return 0.0

    world = Told()
    sharp = steppe.SAM(world.model, world.optimizer, rho=0.1)
    for batch in batches():
        sharp.backward(world.loss, batch)
    log.close()
    assert "".join(path.read_text() for path in tmp_path.iterdir()).count("twenty") == 2 * len(batches())
