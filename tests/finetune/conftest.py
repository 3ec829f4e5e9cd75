"""Adapters are saved without peft's page about them, a quarter of a tiny training's time."""

import pytest
from peft import PeftModel


@pytest.fixture(autouse=True)
def without_model_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda *_: None)
