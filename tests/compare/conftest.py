"""Reports are written whole, but their pictures drawn (seconds each) only where these are what is tested."""

import pytest

from steppe.compare.report import page

PICTURES = ("wide", "narrow", "front", "curves", "losses", "slices", "sharpness", "balance")


@pytest.fixture(autouse=True)
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "pictures" not in request.keywords:
        monkeypatch.setattr(page, "_plots", lambda *_: dict.fromkeys(PICTURES, ()))
