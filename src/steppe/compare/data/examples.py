"""Splits of labelled examples: stratified subsets, label noise, standardised images, texts without their padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from steppe._words import an
from steppe.compare.data import together
from steppe.compare.data.losses import Loss, check_loss
from steppe.compare.data.metrics import Metric, chosen, named

TEST_SHARE = 0.2
"""Share of the examples kept for the test where a source has no test set of its own."""

_BASELINES = ("base", "plain", "early", "averaged", "lawa", "half", "half_early", "double", "double_early")
"""Names of baselines and their variants, which no row may bear."""

_TEST_SEED, _SPLIT_SEED, _NOISE_SEED = 0x7E57, 0x5711, 0x0153


@dataclass(frozen=True)
class Split:
    """Inputs `x` (a tensor, or a tuple or dict of tensors, examples first) and targets `y`, labels or numbers.

    `group` says by a number which examples belong together, of one patient or user: no other part may have any of them.
    """

    x: Any
    y: Tensor
    group: Tensor | None = None
    chunk: ClassVar[int] = 1000
    """Examples per forward where a whole split goes through a model."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Split:
        """The examples at `index`, in that order."""
        return type(self)(pytree.tree_map(lambda tensor: tensor[index], self.x), self.y[index], self._groups_at(index))

    def _groups_at(self, index: Tensor) -> Tensor | None:
        return None if self.group is None else self.group[index]

    def to(self, device: torch.device | str) -> Split:
        """The same examples on `device`."""
        group = None if self.group is None else self.group.to(device)
        return type(self)(pytree.tree_map(lambda tensor: tensor.to(device), self.x), self.y.to(device), group)

    def keys(self) -> list[int]:
        """A number for each example, the same for the same inputs."""
        leaves = [_bytes_of(tensor).numpy() for tensor in pytree.tree_leaves(self.x)]
        return [hash(tuple(leaf[i].tobytes() for leaf in leaves)) for i in range(len(self))]

    def unsound(self) -> Tensor:
        """Which examples hold a value that is not finite."""
        bad = torch.zeros(len(self), dtype=torch.bool, device=self.y.device)
        for tensor in pytree.tree_leaves((self.x, self.y)):
            bad |= ~tensor.isfinite().flatten(1).all(1) if tensor.dim() > 1 else ~tensor.isfinite()
        return bad


def _bytes_of(tensor: Tensor) -> Tensor:
    """What lies in memory of each example, which has no dtype that NumPy lacks, as bfloat16 is."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    return plain.reshape(len(plain), -1).contiguous().view(torch.uint8)


@dataclass(frozen=True)
class Texts(Split):
    """Tokenised texts: `x` holds tensors (examples, tokens), padded on the right, with the mask of what is no padding.

    What is taken from it is as long as its longest text. The lengths stay on the CPU, so a GPU is not waited for.
    """

    lengths: Tensor = field(init=False)
    chunk: ClassVar[int] = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", self.x["attention_mask"].sum(1).cpu())

    def take(self, index: Tensor) -> Texts:
        """The examples at `index`, in that order, without the padding that all of them have."""
        longest = int(self.lengths[index.cpu()].max())
        found = {name: tensor[:, :longest][index] for name, tensor in self.x.items()}
        return Texts(found, self.y[index], self._groups_at(index))

    def keys(self) -> list[int]:
        """Of the tokens alone, as the padding of two parts differs."""
        ids = self.x["input_ids"].cpu().tolist()
        return [hash(tuple(row[:length])) for row, length in zip(ids, self.lengths.tolist(), strict=True)]

    def by_length(self) -> Texts:
        """The same examples, the shortest first: neighbours have little padding."""
        return self.take(self.lengths.argsort(stable=True).to(self.y.device))


@dataclass(frozen=True)
class Task:
    """What one run trains on. A task of your own is a function `seed -> Task`, named as `module:function`.

    Args:
        name: shown in the report.
        train: the labelled examples a run is trained on.
        val: for choosing rho and for early stopping. Never the test set.
        test: looked at for the report only.
        classes: number of classes, whose labels are 0 .. classes - 1; 0 where the targets are numbers.
        recipe: settings this task proposes (`model`, `epochs`, `batch_size`, `lr`, ...); the user's own win.
        loss: "cross_entropy", "mse", "mae", "huber", or a function of output and target that gives one loss for each
            example (or their mean, which methods that choose among examples cannot use).
        metrics: names from `steppe.compare.data.metrics.METRICS`, or a `steppe.compare.Metric` of your own; the first
            one chooses and judges. By default accuracy and nll for cross_entropy; mse, mae and r2 for mse.
        rows: baselines that need no training, name -> function of the inputs `x` that gives outputs (a forecast that
            repeats the last value). They stand among the baselines, and cost nothing.
        notes: sentences on the data that a reader must know; they stand under the table and in the report.

    Raises:
        ValueError: an unknown loss or metric, a row with the name of another baseline, notes that are one string, parts
            that are no tensors of as many inputs as targets, or a group that is in two parts.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    loss: Loss = "cross_entropy"
    metrics: Sequence[str | Metric] = ()
    rows: Mapping[str, Callable[[Any], Tensor]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check loss and metrics, before anything is trained."""
        check_loss(self.loss)
        chosen(self.metrics, self.loss)
        taken = next((name for name in self.rows if name in _BASELINES or not name.strip()), None)
        if isinstance(self.notes, str):
            raise ValueError(f"notes={self.notes!r} was given; expected a list of sentences")
        if taken is not None:
            raise ValueError(f"row {taken!r} cannot be called so; the baselines are {', '.join(_BASELINES)} already")
        for name in ("train", "val", "test"):
            _check_part(getattr(self, name), f"the {name} part of {self.name}")
        together.check(self.train.group, self.val.group, self.test.group)

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for an example: the classes, or the numbers of a target."""
        return self.classes or int(self.train.y[0].numel())

    @property
    def measured(self) -> tuple[Metric, ...]:
        """The metrics, the one that judges first."""
        return chosen(self.metrics, self.loss)

    def judged_by(self, name: str | None) -> Task:
        """The same with another of its metrics, or a built-in one, as the judge; None changes nothing."""
        if name is None:
            return self
        known = {metric.name: metric for metric in self.measured}
        first = known.pop(name, None) or named(name)
        return replace(self, metrics=(first, *known.values()))


def _check_part(split: Split, where: str) -> None:
    """Refuse what is no tensors of as many examples, of which there are some."""
    leaves = [*pytree.tree_leaves(split.x), split.y]
    odd = next((leaf for leaf in leaves if not isinstance(leaf, Tensor) or not leaf.dim()), None)
    if odd is not None:
        raise ValueError(
            f"{where} holds {an(type(odd).__name__)} where tensors are expected; give torch.as_tensor(...)"
        )
    if not len(split.y):
        raise ValueError(f"{where} has no examples; it needs some")
    other = next((len(leaf) for leaf in leaves if len(leaf) != len(split.y)), None)
    if other is not None:
        raise ValueError(f"{where} has {other} inputs and {len(split.y)} targets; expected as many")


@dataclass(frozen=True)
class Source:
    """All examples of a data set before a seed chooses among them; `val` only where its owner made one.

    `notes` are those of the task, `names` those of the classes where they have any.
    """

    pool: Split
    test: Split
    classes: int
    val: Split | None = None
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def generator(*words: int) -> torch.Generator:
    """A generator that depends on `words` alone, never on the global one."""
    seed = 0
    for word in words:
        seed = (seed * 1_000_003 + word + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)


def stratified(y: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of `count` examples with every class in its share, and the indices of the rest, both shuffled.

    The class shares are rounded by largest remainder, so exactly `count` examples are taken.
    """
    if not 0 < count <= len(y):
        raise ValueError(f"cannot take {count} of {len(y)} labelled examples; ask for 1 to {len(y)}")
    by_class = [torch.nonzero(y == label).flatten() for label in torch.unique(y)]
    exact = [len(members) * count / len(y) for members in by_class]
    quota = [int(share) for share in exact]
    by_remainder = sorted(range(len(quota)), key=lambda i: quota[i] - exact[i])
    for i in by_remainder[: count - sum(quota)]:
        quota[i] += 1
    taken, rest = [], []
    for members, n in zip(by_class, quota, strict=True):
        members = members[torch.randperm(len(members), generator=rng)]
        taken.append(members[:n])
        rest.append(members[n:])
    return _shuffled(torch.cat(taken), rng), _shuffled(torch.cat(rest), rng)


def _apart(split: Split, count: int, rng: torch.Generator, leave: int = 1) -> tuple[Tensor, Tensor]:
    """`stratified`; of examples that belong together whole groups of about so many, of which the rest has `leave`."""
    if split.group is None:
        return stratified(split.y, count, rng)
    together.need(split.group, leave + 1)
    return together.apart(split.y, split.group, count, rng, leave)


def _shuffled(index: Tensor, rng: torch.Generator) -> Tensor:
    return index[torch.randperm(len(index), generator=rng)]


def with_noise(y: Tensor, share: float, classes: int, rng: torch.Generator) -> Tensor:
    """Symmetric label noise: exactly `round(share * len(y))` labels become another class, drawn uniformly."""
    wrong = torch.randperm(len(y), generator=rng)[: round(share * len(y))]
    noisy = y.clone()
    noisy[wrong] = (y[wrong] + torch.randint(1, classes, (len(wrong),), generator=rng)) % classes
    return noisy


def hold_out_test(everything: Split, classes: int, count: int | None = None, val: Split | None = None) -> Source:
    """A source whose test set is a fixed stratified part of `everything`: the same for every seed and every study."""
    count = count or max(1, round(TEST_SHARE * len(everything)))
    test, pool = _apart(everything, count, generator(_TEST_SEED), leave=2 if val is None else 1)
    return Source(everything.take(pool), everything.take(test), classes, val)


@dataclass(frozen=True)
class Amounts:
    """How many examples a run gets.

    Args:
        labelled: training examples; None takes all that validation leaves.
        validation: validation examples; None takes the owner's own set, or as many as there are for training, at most
            a fifth of the pool where all of it is used.
        noise: share of wrong labels, 0 to 1.
        per_class: training examples of each class, at most; None sets no limit.
    """

    labelled: int | None = None
    validation: int | None = None
    noise: float = 0.0
    per_class: int | None = None


def choose(source: Source, name: str, seed: int, amounts: Amounts) -> Task:
    """The task of one seed: which examples are labelled, which validate, which labels are wrong.

    The labels a user has come from one place, so the noise falls on training AND validation labels alike: early
    stopping and the choice of rho see no label that a user would not have. Only the test labels are clean.

    Args:
        source: all examples.
        name: the task's name.
        seed: fixes the choice; methods compared with the same seed get the very same examples and labels.
        amounts: how many.
    """
    train, val = drawn(source, seed, amounts)
    task = Task(name, train, val, source.test, source.classes, notes=source.notes)
    return task if isinstance(train, Texts) else standardised(task)


def drawn(source: Source, seed: int, amounts: Amounts) -> tuple[Split, Split]:
    """The training and the validation examples of one seed, with the noise on the labels of both."""
    rng = generator(_SPLIT_SEED, seed)
    val, pool = _validation(source, amounts, rng)
    train = pool.take(_training(pool.y, amounts, rng))
    if amounts.noise:
        rng = generator(_NOISE_SEED, seed)
        train = replace(train, y=with_noise(train.y, amounts.noise, source.classes, rng))
        val = replace(val, y=with_noise(val.y, amounts.noise, source.classes, rng))
    return train, val


def _validation(source: Source, amounts: Amounts, rng: torch.Generator) -> tuple[Split, Split]:
    """The validation examples, and the pool that the training examples come from."""
    if source.val is not None:
        wanted = amounts.validation or len(source.val)
        if wanted > len(source.val):
            raise ValueError(
                f"{wanted} validation examples are more than the {len(source.val)} there are; lower --validation"
            )
        whole = wanted == len(source.val)
        return (source.val if whole else source.val.take(stratified(source.val.y, wanted, rng)[0])), source.pool
    size = len(source.pool)
    wanted = amounts.validation or min(amounts.labelled or size, max(1, size // 5))
    _check_room(size, amounts.labelled, wanted)
    chosen, rest = _apart(source.pool, wanted, rng)
    return source.pool.take(chosen), source.pool.take(rest)


def _training(y: Tensor, amounts: Amounts, rng: torch.Generator) -> Tensor:
    """Indices of the training examples among the labels `y` of the pool."""
    if amounts.per_class is None:
        return stratified(y, amounts.labelled or len(y), rng)[0]
    members = [torch.nonzero(y == label).flatten() for label in torch.unique(y)]
    taken = [each[torch.randperm(len(each), generator=rng)][: amounts.per_class] for each in members]
    return _shuffled(torch.cat(taken), rng)


def _check_room(pool: int, labelled: int | None, validation: int) -> None:
    if (labelled or 1) + validation > pool:
        raise ValueError(
            f"{labelled or 1} labelled and {validation} validation examples are more than the {pool} that are not for "
            "the test; lower --labelled or --validation"
        )


def standardised(task: Task) -> Task:
    """`task` with float images of mean 0 and deviation 1 per channel, both measured on its training examples."""
    x = task.train.x.float()
    axes = [0, *range(2, x.dim())]
    mean, std = x.mean(axes, keepdim=True), x.std(axes, keepdim=True).clamp_min(1e-6)

    def scaled(split: Split) -> Split:
        return replace(split, x=(split.x.float() - mean) / std)

    return replace(task, train=scaled(task.train), val=scaled(task.val), test=scaled(task.test))
