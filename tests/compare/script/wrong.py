"""Scripts with one mistake each; what is refused names the line that bears the name of the mistake as a comment."""

import torch
from torch import nn


def start(sharpen, steps=3):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharp = sharpen(model, optimizer)
    for _ in range(steps):
        sharp.backward(lambda: model(torch.ones(4, 2)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    return model


def nothing(sharpen, seed):  # HERE nothing
    start(sharpen)


def yields_nothing(sharpen, seed):  # HERE yields_nothing
    if start(sharpen) is None:
        yield


def a_number(sharpen, seed):  # HERE a_number
    start(sharpen)
    return 0.9


def no_val(sharpen, seed):
    start(sharpen)
    yield {"valid": 0.9, "test": 0.9}  # HERE no_val


def beside(sharpen, seed):
    start(sharpen)
    yield {"val": 0.9, "test": 0.9, "accuracy": 0.1}  # HERE beside


def lacks(sharpen, seed):
    start(sharpen)
    yield {"val": {"accuracy": 0.9, "nll": 0.1}, "test": {"accuracy": 0.9}}  # HERE lacks


def later(sharpen, seed):
    start(sharpen)
    yield {"val": {"accuracy": 0.9, "nll": 0.1}, "test": {"accuracy": 0.9, "nll": 1.0}}
    yield {"val": {"accuracy": 0.9}, "test": {"accuracy": 0.9}}  # HERE later


def no_number(sharpen, seed):
    start(sharpen)
    yield {"val": "good", "test": 0.9}  # HERE no_number


def nan(sharpen, seed):
    start(sharpen)
    yield {"val": {"accuracy": float("nan")}, "test": {"accuracy": 0.5}}  # HERE nan


def in_per_cent(sharpen, seed):
    start(sharpen)
    yield {"val": {"accuracy": 0.5}, "test": {"accuracy": 93.5}}  # HERE in_per_cent


def direction(sharpen, seed):
    start(sharpen)
    yield {"val": {"thing": 0.5}, "test": {"thing": 0.5}}  # HERE direction


def never_called(sharpen, seed):  # HERE never_called
    return {"val": 0.5, "test": 0.5}


def never_backward(sharpen, seed):  # HERE never_backward
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharpen(model, optimizer)
    for _ in range(3):
        model(torch.ones(4, 2)).square().mean().backward()
        optimizer.step()
    return {"val": 0.5, "test": 0.5}


def never_stepped(sharpen, seed):  # HERE never_stepped
    model = nn.Linear(2, 1)
    sharp = sharpen(model, torch.optim.SGD(model.parameters(), lr=0.1))
    sharp.backward(lambda: model(torch.ones(4, 2)).square().mean())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return {"val": 0.5, "test": 0.5}


def no_measure(sharpen, seed):
    model = torch.nn.Linear(2, 1)
    sharpen(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=3, measure={"val": 1.0})  # HERE no_measure


def measure_without_length(sharpen, seed):
    model = torch.nn.Linear(2, 1)
    sharpen(model, torch.optim.SGD(model.parameters(), lr=0.1), measure=dict)  # HERE measure_without_length


def two_models(sharpen, seed):
    start(sharpen, steps=1)
    other = nn.Linear(2, 1)
    sharpen(other, torch.optim.SGD(other.parameters(), lr=0.1))  # HERE two_models


def raises(sharpen, seed):
    start(sharpen, steps=1)
    return [][0]  # HERE raises


def exits(sharpen, seed):
    start(sharpen, steps=1)
    raise SystemExit(3)  # HERE exits


def a_loss(sharpen, seed):
    model = nn.Linear(2, 1)
    sharp = sharpen(model, torch.optim.SGD(model.parameters(), lr=0.1))
    sharp.backward(model(torch.ones(4, 2)).square().mean())  # HERE a_loss
    return {"val": 0.5, "test": 0.5}


def no_length(sharpen, seed):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sharpen(model, optimizer)  # HERE no_length


def no_seed(sharpen):  # HERE no_seed
    return start(sharpen)


def wants(sharpen, seed, width, depth=2):  # HERE wants
    return start(sharpen)


async def asynchronous(sharpen, seed):  # HERE asynchronous
    return start(sharpen)


MODEL = nn.Linear(2, 1)


def goes_on(sharpen, seed):
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    sharp = sharpen(MODEL, optimizer)  # HERE goes_on
    for _ in range(3):
        sharp.backward(lambda: MODEL(torch.ones(4, 2)).square().mean())
        optimizer.step()
    return {"val": 1.0, "test": 1.0}
