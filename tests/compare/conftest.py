"""No process from which workers could be forked is started where none is: it would import torch for nothing."""

import pytest


@pytest.fixture(autouse=True)
def without_a_fork_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steppe._command.pool.warm_up", lambda: None)
