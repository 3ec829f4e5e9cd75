"""Made-up run records in the format of the study, for tests of the summary and the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Fake:
    """One method of a made-up comparison: true accuracies and costs around which the seeds scatter."""

    label: str
    accuracy: float
    early: float | None = None
    passes: float = 2.0
    time: float = 2.0
    memory: float = 1.4
    sharpness: float = 0.05
    rho: float | None = 0.2
    grid: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5)
    settings: dict[str, Any] = field(default_factory=dict)


CLEAN = {
    "base": Fake("base", 0.940, 0.938, 1.0, 1.0, 1.0, 0.30, None, ()),
    "sam": Fake("SAM", 0.957, 0.955, 2.0, 2.03, 1.41, 0.06),
    "asam": Fake("ASAM", 0.9585, 0.956, 2.0, 2.12, 1.44, 0.05, 2.0, (0.5, 1.0, 2.0, 5.0)),
    "grst": Fake("G-RST", 0.9565, 0.955, 1.5, 1.58, 1.62, 0.07, settings={"p": 0.5, "kappa": 1.0}),
    "look_sam:push=natural": Fake(
        "LookSAM (push=natural)", 0.9535, 0.951, 1.2, 1.31, 1.63, 0.10, settings={"push": "natural"}
    ),
    "gsam": Fake("GSAM", 0.9572, 0.954, 2.0, 2.06, 1.63, 0.06),
    "fsam": Fake("F-SAM", 0.9568, 0.954, 2.0, 2.09, 1.81, 0.065),
    "aesam": Fake("AE-SAM", 0.9530, 0.951, 1.47, 1.52, 1.40, 0.09),
    "sam_on": Fake("SAM-ON", 0.9460, 0.944, 2.0, 2.01, 1.02, 0.21, 0.5),
}
NOISY = {
    "base": Fake("base", 0.700, 0.880, 1.0, 1.0, 1.0, 2.0, None, ()),
    "sam": Fake("SAM", 0.870, 0.893, 2.0, 2.03, 1.41, 0.3, 0.5),
    "grst": Fake("G-RST", 0.860, 0.892, 1.5, 1.58, 1.62, 0.4),
}


def records(
    methods: Mapping[str, Fake] = CLEAN,
    seeds: Iterable[int] = range(5),
    *,
    epochs: int = 100,
    spread: float = 0.003,
) -> list[dict[str, Any]]:
    """All runs of a comparison: tuning, final, and the base with twice the epochs."""
    seeds = list(seeds)
    made = []
    for name, fake in methods.items():
        for seed in seeds:
            made.append(run(name, fake, seed, epochs=epochs, spread=spread))
        for rho in fake.grid:
            loss = 0.004 * math.log2(rho / (fake.rho or rho)) ** 2
            made.append(run(name, fake, 999, phase="tune", rho=rho, epochs=epochs, shift=-loss))
    for seed in seeds:
        made.append(run("base", methods["base"], seed, variant="double", epochs=2 * epochs, spread=spread))
    return made


def run(
    method: str,
    fake: Fake,
    seed: int,
    *,
    phase: str = "final",
    variant: str = "plain",
    rho: float | None = None,
    epochs: int = 100,
    spread: float = 0.003,
    shift: float = 0.0,
) -> dict[str, Any]:
    """One run record; the same arguments give the same record."""
    shared = np.random.default_rng(seed).normal()  # what is hard about a seed is hard for every method
    own = np.random.default_rng([seed, *method.encode(), *variant.encode()])
    final = fake.accuracy + shift + spread * (shared + 0.5 * own.normal())
    early = (fake.early or fake.accuracy) + shift + spread * (shared + 0.5 * own.normal())
    rho = fake.rho if rho is None else rho
    return {
        "schema": 1,
        "run_id": f"{phase}-{method}-{variant}-{rho}-{seed}",
        "phase": phase,
        "method": method,
        "label": fake.label if variant == "plain" else f"{fake.label}, twice the epochs",
        "variant": variant,
        "seed": seed,
        "rho": rho,
        "settings": fake.settings,
        "epochs": epochs,
        "steps": 4 * epochs,
        "val_accuracy": final - 0.005,
        "test_accuracy": final,
        "early": {"epoch": epochs // 3, "val_accuracy": early - 0.004, "test_accuracy": early},
        "passes_per_step": fake.passes + (0.01 * own.normal() if fake.passes not in (1.0, 1.2, 2.0) else 0.0),
        "sharpness": {"rho": 0.05, "value": fake.sharpness * math.exp(0.15 * own.normal())},
        "slice": _slice(fake.sharpness),
        "curve": _curve(final, epochs, own),
        "seconds": 2.1 * fake.time * epochs / 100,
        "finished": "2026-01-15T10:00:00+00:00",
        "spec_hash": "0f3a9c",
        "provenance": {
            "steppe": "0.1.0",
            "torch": "2.13.0",
            "python": "3.12.4",
            "device": "cpu",
            "threads": 1,
            "platform": "Linux-6.1-x86_64",
        },
    }


def _slice(sharpness: float) -> dict[str, list[float]]:
    t = np.linspace(-0.5, 0.5, 21)
    loss = 0.002 + sharpness * (np.expm1(6 * np.abs(t)) - 0.9 * 6 * np.abs(t)) * np.where(t > 0, 1.0, 0.4)
    return {"t": t.tolist(), "loss": loss.tolist()}


def _curve(final: float, epochs: int, generator: np.random.Generator) -> dict[str, list[float]]:
    epoch = np.arange(1, epochs + 1)
    rise = np.exp(-epoch / (0.06 * epochs))
    accuracy = final - (final - 0.1) * rise + 0.002 * generator.normal(size=epochs)
    loss = 2.3 * np.exp(-epoch / (0.1 * epochs)) + 0.003
    return {
        "epoch": epoch.tolist(),
        "train_loss": loss.tolist(),
        "val_accuracy": (accuracy - 0.005).tolist(),
        "test_accuracy": accuracy.tolist(),
    }


def cost(methods: Mapping[str, Fake] = CLEAN) -> dict[str, Any]:
    """The measured cost of each method."""
    return {
        "base": {"label": methods["base"].label, "step_ms": 3.1},
        "methods": {
            name: {
                "label": fake.label,
                "time_ratio": {"median": fake.time, "low": 0.97 * fake.time, "high": 1.04 * fake.time},
                "memory_ratio": fake.memory,
                "passes": fake.passes,
                "step_ms": 3.1 * fake.time,
            }
            for name, fake in methods.items()
            if name != "base"
        },
    }


def spec(methods: Mapping[str, Fake] = CLEAN, seeds: int = 5) -> dict[str, Any]:
    """A resolved spec."""
    return {
        "task": "digits-few",
        "model": "cnn",
        "methods": [name for name in methods if name != "base"],
        "labels": {name: fake.label for name, fake in methods.items() if name != "base"},
        "seeds": list(range(seeds)),
        "epochs": 100,
        "batch_size": 50,
        "rho": [0.05, 0.1, 0.2, 0.5],
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005},
    }
