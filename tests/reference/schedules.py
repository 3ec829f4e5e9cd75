"""The seven probability schedules of RST, as its authors have them, and the coin tossed at each step."""

# ruff: noqa: N803 - T is the papers' letter for the total number of steps

import hashlib
import math

import torch


def constant(t, T, p):
    return p


def piecewise1(t, T, p):
    return 0.0 if t <= p * T else 1.0


def piecewise2(t, T, p):
    return 1.0 if t <= p * T else 0.0


def piecewise3(t, T, p):
    return p if t <= T / 2 else 1 - p


def linear1(t, T, p):
    if p <= 0.5:
        return (2 * p / T) * t
    return (2 * p - 1) + (2 * (1 - p) / T) * t


def linear2(t, T, p):
    return p + (1 - 2 * p) * t / T


def trigonometric(t, T, p, p_end):
    return p + (p_end - p) * (1 - math.cos(math.pi * t / T)) / 2


PROBABILITIES = {
    "constant": constant,
    "piecewise1": piecewise1,
    "piecewise2": piecewise2,
    "piecewise3": piecewise3,
    "linear1": linear1,
    "linear2": linear2,
    "trigonometric": trigonometric,
}


def probability(schedule, t, T, p, p_end=None, start_step=0):
    """p(t): zero before `start_step`, then the schedule at the absolute step t of T."""
    if t < start_step:
        return 0.0
    if schedule == "trigonometric":
        return trigonometric(t, T, p, p_end)
    return PROBABILITIES[schedule](t, T, p)


def coin(seed, t):
    """The uniform number of step t: 8 bytes of blake2b over "seed:t", read big-endian, over 2**64."""
    digest = hashlib.blake2b(f"{seed}:{t}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def drawn(w, share, purpose, seed, t):
    """For each tensor in order, the entries that a chance of `share` takes: torch's stream, seeded by blake2b."""
    digest = hashlib.blake2b(f"{purpose}:{seed}:{t}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    blank = {k: torch.empty(v.shape, dtype=torch.float64) for k, v in w.items()}
    return {k: b.bernoulli_(share, generator=generator).numpy() for k, b in blank.items()}


def normal(name, shape, seed, t):
    """Standard normal numbers of one tensor: torch's stream, seeded by blake2b over "noise:name:seed:t"."""
    digest = hashlib.blake2b(f"noise:{name}:{seed}:{t}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.randn(shape, generator=generator, dtype=torch.float64).numpy()
