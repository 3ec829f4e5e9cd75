"""Bad input to constructors and backward: refused at the earliest point, in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import steppe
from steppe import curves

MODEL = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def sgd(**group: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": list(MODEL.parameters()), **group}], lr=0.1)


def sharp(**parts: Any) -> steppe.SharpnessAware:
    return steppe.SharpnessAware(MODEL, sgd(), **parts)


def two() -> torch.Tensor:
    return MODEL(torch.ones(2, 3)).sum(1)


# what was tried -> (call, words that the sentence must hold)
CASES: dict[str, tuple[Callable[[], Any], str]] = {
    "parameters for a model": (lambda: steppe.SAM(MODEL.parameters(), sgd()), "expected a torch.nn.Module"),
    "a class for an optimizer": (lambda: steppe.SAM(MODEL, torch.optim.SGD), "expected a torch.optim.Optimizer"),
    "model and optimizer swapped": (lambda: steppe.SAM(sgd(), MODEL), "expected a torch.nn.Module"),
    "a seed that is no number": (lambda: sharp(seed="a"), "expected a whole number"),
    "a schedule by name": (lambda: sharp(schedule="always"), "expected a steppe Schedule part such as Always()"),
    "a combination by class": (lambda: sharp(combine=steppe.Mix), "expected a steppe Combine part"),
    "an ascent that is a number": (lambda: sharp(ascent=0.05), "expected a steppe Ascent part"),
    "a part that the method makes": (
        lambda: steppe.KSAM(MODEL, sgd(), look=steppe.Look(2)), "given to KSAM, which makes this part of its own"),
    "an unknown argument": (lambda: steppe.SAM(MODEL, sgd(), radius=1), "radius=1 was given, which is no setting"),
    "another model's optimizer": (
        lambda: steppe.SAM(nn.Linear(3, 4), sgd()), "holds 4 parameter(s) that the model does not"),
    "a negative group rho": (lambda: steppe.SAM(MODEL, sgd(rho=-1)), "group has rho=-1; expected a finite number"),
    "a group's perturb as a word": (lambda: steppe.SAM(MODEL, sgd(perturb="no")), "expected True or False"),
    "nothing left to perturb": (lambda: steppe.SAM(MODEL, sgd(perturb=False)), "nothing to perturb"),
    "SAM-ON without normalisation": (lambda: steppe.SAMON(MODEL, sgd()), "nothing to perturb"),
    "AdaSAM on Adam": (
        lambda: steppe.AdaSAM(MODEL, torch.optim.Adam(MODEL.parameters())), "expected steppe.optim.AMSGrad"),
    "negative rho": (lambda: steppe.Ascent(rho=-1), "rho=-1 was given; expected a finite number of at least 0"),
    "infinite rho": (lambda: steppe.Ascent(rho=float("inf")), "rho=inf was given"),
    "rho as a word": (lambda: steppe.Ascent(rho="0.05"), "rho='0.05' was given"),
    "an unknown scope": (lambda: steppe.Ascent(scope="layer"), "expected one of 'global', 'tensor'"),
    "an unknown subset": (lambda: steppe.Ascent(subset="bias"), "expected one of 'all', 'norm'"),
    "a metric by name": (lambda: steppe.Ascent(metric="adaptive"), "expected a steppe Metric"),
    "a direction by name": (lambda: steppe.Ascent(direction="random"), "expected a steppe Direction"),
    "no samples": (lambda: steppe.Look(samples=0), "expected a whole number of samples"),
    "more than all samples": (lambda: steppe.Look(samples=1.5), "a fraction between 0 and 1"),
    "negative eta": (lambda: steppe.Adaptive(-0.1), "eta=-0.1 was given"),
    "decay over one": (lambda: steppe.Friendly(decay=1.1), "expected a number from 0 to 1"),
    "interval zero": (lambda: steppe.Every(0), "expected a whole number of at least 1"),
    "interval as a fraction": (lambda: steppe.Every(2.5), "expected a whole number"),
    "probability over one": (lambda: steppe.Bernoulli(1.2), "p is a probability"),
    "a window that ends before it starts": (lambda: steppe.Window(5, 3), "expected a whole number of at least 5"),
    "a window from the past": (lambda: steppe.Window(-1), "expected a whole number of at least 0"),
    "AE-SAM without steps": (lambda: steppe.AboveNorm(0), "total_steps=0 was given"),
    "negative gamma": (lambda: steppe.Mix(-0.1), "gamma=-0.1 was given"),
    "gamma not a number": (lambda: steppe.Mix(float("nan")), "gamma=nan was given"),
    "WSAM's gamma at one": (lambda: steppe.Decoupled(1), "expected gamma below 1"),
    "an unknown push": (lambda: steppe.Reuse(push="soft"), "expected one of 'guarded', 'natural', 'paper'"),
    "a reuse inside a reuse": (lambda: steppe.Reuse(refresh=steppe.Reuse()), "expected Replace(), Mix(...)"),
    "negative alpha": (lambda: steppe.SurrogateGap(-1), "alpha=-1 was given"),
    "a linear curve of no steps": (lambda: curves.Linear(0, 1, 0), "total_steps=0 was given"),
    "rates in the wrong order": (lambda: curves.FollowLR(0.1, 0.0, 0.1, 0.2), "expected lr_max > lr_min"),
    "an RST schedule without steps": (
        lambda: steppe.RST(MODEL, sgd(), schedule="linear1"), "needs total_steps, the number of optimizer steps"),
    "an end for a constant": (lambda: steppe.RST(MODEL, sgd(), p_end=0.2), "leave it out"),
    "late SAM without a start": (lambda: steppe.LateSAM(MODEL, sgd()), "expected start (the first SAM step)"),
    "AMSGrad without a floor": (lambda: steppe.optim.AMSGrad(MODEL.parameters(), eps=0), "expected a number above 0"),
    "AMSGrad with one beta": (lambda: steppe.optim.AMSGrad(MODEL.parameters(), betas=0.9), "expected two numbers"),
    "a function of two": (lambda: sharp().backward(lambda x, y: two().sum(), (1, 2)), "the batch as ONE argument"),
    "a loss instead of a closure": (lambda: sharp().backward(two().sum()), "expected a function that computes"),
    "settings by the method's own words: k": (lambda: steppe.LookSAM(MODEL, sgd(), k=0), "k=0 was given"),
    "k, by layers": (lambda: steppe.LookLayerSAM(MODEL, sgd(), k=-1), "k=-1 was given"),
    "start_step": (lambda: steppe.RST(MODEL, sgd(), start_step=-1), "start_step=-1 was given"),
    "gamma_max": (lambda: steppe.GRST(MODEL, sgd(), gamma_max=-1), "gamma_max=-1 was given"),
    "descent": (lambda: steppe.KSAM(MODEL, sgd(), descent=3), "descent=3 was given; expected a number from 0 to 1; a"),
    "gamma": (lambda: steppe.ESAM(MODEL, sgd(), gamma=1.5), "gamma=1.5 was given"),
    "a closure that returns more": (lambda: sharp().backward(lambda: (two().mean(), two())), "element: the loss alone"),
    "a closure that returns a dict": (
        lambda: sharp().backward(lambda: {"loss": two().mean()}), 'element: its ["loss"]'),
    "a closure that returns an output": (
        lambda: sharp().backward(lambda: SimpleNamespace(loss=two().mean())), "element: its .loss"),
    "a temperature of nobody's": (
        lambda: steppe.SAM(MODEL, torch.optim.SGD([*MODEL.parameters(), torch.zeros((), requires_grad=True)])),
        "made a parameter of the model by"),
    "a closure that returns a number": (lambda: sharp().backward(lambda: 1.0), "returned float; expected a tensor"),
    "a closure that returns many losses": (lambda: sharp().backward(two), "has shape (2,); expected one element"),
    "a loss without a graph": (lambda: sharp().backward(lambda: two().sum().detach()), "has no graph behind it"),
    "no micro-batches": (lambda: sharp().backward(two, micro_batches=[]), "micro_batches is empty"),
    "a batch and micro-batches": (lambda: sharp().backward(two, 1, micro_batches=[1]), "expected one of them"),
    "few samples of a closure": (
        lambda: sharp(look=steppe.Look(2)).backward(two), "expected backward(loss_of, batch)"),
    "few samples of no tensor": (
        lambda: sharp(look=steppe.Look(2)).backward(lambda b: two().sum(), "text"), "holds no tensor"),
    "a setting of the look, of the ascent": (
        lambda: steppe.Ascent(samples=2), "expected it in SharpnessAware(look=steppe.Look(samples=2))"),
    "a setting of the look, of a method": (
        lambda: steppe.ASAM(MODEL, sgd(), samples=2), "it is one of a look: look=steppe.Look(samples=2)"),
    "samples twice": (
        lambda: steppe.SAM(MODEL, sgd(), samples=2, look=steppe.Look(2)), "expected all of the look in one"),
    "the share, of the ascent": (
        lambda: steppe.Ascent(hardest=0.5), "expected it in SharpnessAware(hardest=0.5)"),
    "the phases with few samples": (
        lambda: sharp(look=steppe.Look(2)).ascend(), "ascend() cannot slice a batch"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_that_says_what_to_do(case: str) -> None:
    call, words = CASES[case]
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    message = str(error.value)
    assert words in message and "\n" not in message and len(message) < 260


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40
