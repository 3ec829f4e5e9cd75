"""One run: train a model on a task with one method, its tuned value and a seed, and record what came of it.

The loop is the one a user writes; `sharp.backward` stands where `loss.backward` stood. The result depends on the
settings, the method, its value and the seed alone: not on the process it runs in, nor on what ran there before.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from steppe._command import averages, ranks
from steppe._command.choices import BASE, OPTIMIZERS, Choice
from steppe._command.devices import take_gpu
from steppe._command.pool import Tell
from steppe._command.provenance import ended, made_with
from steppe.compare.analysis import lost
from steppe.compare.data import chance, models, tasks
from steppe.compare.data.examples import Split, Task, generator
from steppe.compare.data.losses import Loss, each_of, mean_of
from steppe.compare.data.sound import lopsided
from steppe.compare.engine import also, forecasts, measure
from steppe.compare.engine.curve import Curve, figures, spread
from steppe.compare.engine.rows import untrained
from steppe.compare.engine.runs import Run
from steppe.compare.engine.spec import SCHEMA, Spec, steps_per_epoch
from steppe.protocol import needs_of

_ORDER_SEED = 0x0DE5


@dataclass
class Trainer:
    """Model, optimizer, schedule and, unless this is the base, the sharpness-aware gradient."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    sharp: Any
    blank: Callable[[], nn.Module]
    loss: Loss = "cross_entropy"
    average: AveragedModel | None = None
    """Kept along where it is what is judged, so that its time counts."""

    def whole(self) -> nn.Module:
        """The model as one piece, to measure."""
        return ranks.whole(self.model, self.blank)

    def loss_of(self, batch: tuple[Any, Tensor]) -> Tensor:
        """Mean loss of one batch; the one of each example where the method chooses among them."""
        x, y = batch
        each = needs_of(self.sharp).per_sample
        return (each_of if each else mean_of)(self.loss, self.model(x), y)

    def ascended(self) -> bool:
        """Whether the latest step ran a pass at perturbed weights."""
        return bool(getattr(getattr(self.sharp, "last", None), "ascended", False))  # a user's own may not tell

    def step(self, batch: tuple[Any, Tensor]) -> Tensor:
        """One training step, as in anybody's loop; returns the loss before it."""
        batch = ranks.own_part(batch)
        if self.sharp is None:
            loss = self.loss_of(batch)
            loss.backward()
        else:
            loss = self.sharp.backward(self.loss_of, batch)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return ranks.averaged(loss.detach().clone())


def fresh(spec: Spec, task: Task, seed: int) -> nn.Module:
    """The model of a run; what it does not draw from the seed itself comes from the global generator."""
    return models.build(spec.model, task, spec.lora(), seed).to(spec.device)


def make_trainer(spec: Spec, task: Task, run: Run, total_steps: int, *, bare: bool = False) -> Trainer:
    """A fresh model for `run`, its weights drawn from the seed, with all that trains it.

    `bare`: without the method itself, on the optimizer that it would have.
    """
    blank = partial(fresh, spec, task, run.seed)
    torch.manual_seed(run.seed)
    model = ranks.spread(blank(), spec.parallel)
    choice = run.choice
    optimizer = make_optimizer(spec, model, choice, run.lr)
    sharp = None
    if choice is not None and not bare:
        sharp = choice.build(
            model, optimizer, value=run.value, more=dict(run.more), seed=run.seed, total_steps=total_steps
        )
        if hasattr(sharp, "measure"):
            sharp.measure = bool(spec.log)  # which reads the weights, and changes nothing
    scheduler = LambdaLR(optimizer, _schedule(spec, total_steps))
    average = exponential(spec, model, total_steps) if choice is not None and choice.average == "ema" else None
    return Trainer(model, optimizer, scheduler, sharp, blank, task.loss, average)


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def _schedule(spec: Spec, total_steps: int) -> Callable[[int], float]:
    """Step -> share of the learning rate: a straight way up over the warm-up, then the study's shape to the end."""
    warm, shape = round(spec.warmup * total_steps), _SHAPES[spec.lr_schedule]
    rest = max(1, total_steps - warm)  # a scheduler also asks for the step after the last
    return lambda t: (t + 1) / (warm + 1) if t < warm else shape(min(1.0, (t - warm) / rest))


def make_optimizer(spec: Spec, model: nn.Module, choice: Choice | None, lr: float | None = None) -> Optimizer:
    """The base optimizer of the study, or the method's own where its paper brings one of another kind.

    `lr` is what the study chose; None is the one in the settings.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    own = choice.own_optimizer(weights) if choice is not None and choice.brings(spec.optimizer) else None
    if own is not None:
        return own
    more = {"momentum": spec.momentum} if spec.optimizer == "sgd" else {}
    kind: Callable[..., Optimizer] = OPTIMIZERS[spec.optimizer]
    return kind(weights, lr=lr or spec.lr, weight_decay=spec.weight_decay, **more)


def batches(task: Task, batch_size: int, seed: int) -> Iterator[Iterator[tuple[Any, Tensor]]]:
    """Epoch after epoch of whole batches in an order that depends on the seed alone."""
    rng = generator(_ORDER_SEED, seed)
    steps = steps_per_epoch(len(task.train), batch_size)
    while True:
        order = torch.randperm(len(task.train), generator=rng).to(task.train.y.device)
        parts = (task.train.take(index) for index in order.split(batch_size)[:steps])
        yield ((part.x, part.y) for part in parts)


def load_task(spec: Spec, seed: int) -> Task:
    """The task of `seed`, on the study's device."""
    task = tasks.load(spec.data_options(), seed).judged_by(spec.metric)
    parts = {name: getattr(task, name).to(spec.device) for name in ("train", "val", "test")}
    _check_finite(parts, task.name)
    return replace(task, **parts, notes=(*task.notes, *lopsided(task)))


def _check_finite(parts: dict[str, Split], name: str) -> None:
    """Refuse inputs from which nothing could be learned but more of the same."""
    for part, split in parts.items():
        bad = split.unsound()
        if bool(bad.any()):
            raise ValueError(
                f"the {part} part of {name} holds values that are not finite in {int(bad.sum())} of {len(bad)} "
                f"examples, the first is number {int(bad.nonzero()[0])} (from 0); fill them or leave them out"
            )


def _lost(task: Task, losses: list[float], record: dict[str, Any]) -> str | None:
    """In what the run diverged; of classes, whether it learned anything."""
    if "beyond_chance" not in record:
        return lost.why(losses)
    labels, held = task.train.y, task.val.y.cpu()
    guessing = float(torch.special.entr(torch.bincount(labels).double() / len(labels)).sum())
    others = len(held) - int(torch.bincount(held).max())
    told = {"beyond": record["beyond_chance"], "most": chance.most(held), "accuracy": record.get("val_accuracy", 0.0)}
    return lost.why(losses, guessing=guessing, others=others, **told)


def _beyond(model: nn.Module, task: Task) -> dict[str, float]:
    """What the outputs tell of the validation labels, where these are classes and the outputs their scores."""
    y, names = task.val.y, {metric.name for metric in task.measured}
    if not task.classes or y.dim() > 1 or (task.loss != "cross_entropy" and "accuracy" not in names):
        return {}
    return measure.metrics(model, task.val, [chance.beyond(y, task.measured[0].name)], task.classes)


def train(spec: Spec, run: Run, tell: Tell = lambda share: None) -> dict[str, Any]:
    """Train one run from its first step to its record (without phase and identity, which the store adds)."""
    start = time.perf_counter()
    _same_everywhere(spec)
    task = load_task(spec, run.seed)
    per_epoch = steps_per_epoch(len(task.train), spec.batch_size)
    steps = run.steps(spec, per_epoch)
    trainer = make_trainer(spec, task, run, steps)
    counter = measure.PassCounter(trainer.model)
    getattr(trainer.sharp, "replays", []).append(counter.replayed)
    fit = _fit(spec, task, run, trainer, steps, tell)
    record = _figures(spec, task, run, trainer, fit)
    if task.rows and (run.method, run.variant) == (BASE, "plain"):
        record["rows"] = untrained(task)
    return record | {
        "epochs": _epochs(steps, per_epoch), "steps": steps, "passes_per_step": counter.examples / fit.examples,
        "ascended_share": fit.ascents / steps, "diverged": _lost(task, fit.curve.train_loss, record),
        **ended(start), "provenance": provenance(spec),
    }  # fmt: skip


@dataclass
class _Fit:
    """What is noted while a run trains: the curve, the examples in all batches, how many steps ascended."""

    curve: Curve
    balance: measure.Balance | None
    average: AveragedModel | None
    lawa: AveragedModel | None
    examples: int = 0
    ascents: int = 0


def _fit(spec: Spec, task: Task, run: Run, trainer: Trainer, steps: int, tell: Tell) -> _Fit:
    """The training, with a look at the validation part now and then."""
    per_epoch = steps_per_epoch(len(task.train), spec.batch_size)
    curve, balance = Curve(task, spread(task.test, spec.test_curve)), measure.Balance.of(trainer.model)
    fit = _Fit(curve, balance, exponential(spec, trainer.model, steps), _latest(spec, trainer.model))
    losses: list[Tensor] = []
    taken = set(averages.latest_steps(steps, per_epoch))
    stream = itertools.chain.from_iterable(batches(task, spec.batch_size, run.seed))
    for step, batch in zip(range(1, steps + 1), stream, strict=False):
        losses.append(trainer.step(batch))
        if fit.average is not None:
            fit.average.update_parameters(trainer.model)
        if fit.lawa is not None and step in taken:
            fit.lawa.update_parameters(trainer.model)
        fit.examples += len(batch[1]) // ranks.ranks()
        fit.ascents += trainer.ascended()
        curve.step(trainer.sharp)
        if step % run.every(spec, per_epoch) == 0 or step == steps:
            epoch = _epochs(step, per_epoch)
            fit.curve.note(trainer.whole(), epoch, float(torch.stack(losses).mean()))
            if fit.balance:
                fit.balance.note(epoch)
            losses = []
        if step % per_epoch == 0 or step == steps:
            tell(step / steps)
    return fit


def exponential(spec: Spec, model: nn.Module, steps: int) -> AveragedModel | None:
    """An exponential average of weights and statistics over about a tenth of the training; none of split models."""
    if spec.parallel is not None:
        return None
    return AveragedModel(model, multi_avg_fn=averages.exponential(steps), use_buffers=True)


def _latest(spec: Spec, model: nn.Module) -> AveragedModel | None:
    """The plain mean of the weights and statistics that it is given; none of split models."""
    return AveragedModel(model, avg_fn=_mean, use_buffers=True) if spec.parallel is None else None


def _mean(averaged: Tensor, latest: Tensor, count: Tensor | int) -> Tensor:
    """torch's mean of what is a number; masks and counts are the latest."""
    return get_swa_avg_fn()(averaged, latest, count) if averaged.is_floating_point() else latest


def _averaged(average: AveragedModel | None, task: Task) -> dict[str, float] | None:
    if average is None:
        return None
    return figures(average.module, task, "val") | figures(average.module, task, "test")


def _epochs(steps: int, per_epoch: int) -> float:
    """Steps in epochs: a whole number where they are whole."""
    return steps // per_epoch if steps % per_epoch == 0 else round(steps / per_epoch, 3)


def _figures(spec: Spec, task: Task, run: Run, trainer: Trainer, fit: _Fit) -> dict[str, Any]:
    model, curve = trainer.whole(), fit.curve
    seen = spread(task.train, spec.sharpness_examples or len(task.train))
    sharpness, loss_slice = measure.sharpness_and_slice(model, seen, spec.sharpness_rho, task.loss)
    val, test = figures(model, task, "val"), figures(model, task, "test")
    more = _beyond(model, task) | forecasts.kept(model, task)  # before early stopping takes other weights
    more |= {"notes": list(task.notes)} if task.notes else {}
    more |= {"also": also.figures(model, task, spec.also, run.seed)} if spec.also else {}
    return {
        **run.named(), "metric": curve.judge.as_dict(), **val, **test,
        **_sizes(task),
        "averaged": _averaged(fit.average, task), "lawa": _averaged(fit.lawa, task),
        "early": curve.early(model, test),
        "sharpness": sharpness, "slice": loss_slice, "curve": curve.as_dict(),
        **more,
    } | ({"balancedness": fit.balance.as_dict()} if fit.balance else {})  # fmt: skip


def _sizes(task: Task) -> dict[str, Any]:
    """How many examples each part has, and how many groups where these stay whole."""
    parts = {"train": task.train, "val": task.val, "test": task.test}
    groups = {name: len(part.group.unique()) for name, part in parts.items() if part.group is not None}
    return {"examples": {name: len(part) for name, part in parts.items()}} | ({"groups": groups} if groups else {})


def _same_everywhere(spec: Spec) -> None:
    """On a GPU, the algorithms that give the same result every time."""
    if spec.parallel is None:
        take_gpu(spec.device)
    if spec.device != "cpu":
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def provenance(spec: Spec) -> dict[str, Any]:
    """What a result was made with."""
    return made_with(spec.device) | {"schema": SCHEMA}
