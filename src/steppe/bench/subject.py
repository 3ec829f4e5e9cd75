"""What is trained in a benchmark: a model, one batch and the loss, built anew for every contender."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils import _pytree as pytree

from steppe._batch import checked
from steppe._command.devices import usable_device
from steppe._command.lookup import called, named_function
from steppe._command.networks import find
from steppe._words import an

LossOf = Callable[[nn.Module, Any], Tensor]
HF = "hf:"
_FORM = "function(shape, classes) -> model, or function(batch_size) -> (model, batch, loss_of)"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Problem:
    """A model, a batch on its device, and ``loss_of(model, batch)``, a scalar with a graph."""

    model: nn.Module
    batch: Any
    loss_of: LossOf


@dataclass(frozen=True)
class Subject:
    """What to train; what each field is stands at the field, and is the help of the flag of that name.

    A model is ``module:function`` too: ``function(shape, classes) -> model`` for images, or
    ``function(batch_size) -> (model, batch, loss_of)``.
    """

    model: Annotated[str, Field(description="cnn, mlp, resnet18, vit, hf:FOLDER or hf:ID, or module:function.")] = "cnn"
    batch_size: Annotated[int, Field(description="Examples in the batch.")] = 128
    shape: Annotated[tuple[int, ...], Field(description="Channels, height and width of an image.")] = (3, 32, 32)
    classes: Annotated[int, Field(description="Classes of an image model.")] = 10
    length: Annotated[int, Field(description="Tokens of a text of an hf: model.")] = 64
    lora: Annotated[
        int | None, Field(description="Rank of adapters of an hf: model; without it all of it is trained.")
    ] = None
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:0.")] = "cpu"
    dtype: Annotated[
        str, Field(description="Of weights and floating-point inputs: float32, bfloat16, float16 or float64.")
    ] = "float32"

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size, classes=self.classes, length=self.length, lora=self.lora)
        if self.lora is not None and not self.model.startswith(HF):
            raise ValueError(f"--lora is for hf: models, and the model is {self.model!r}; leave it out")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if not isinstance(self.shape, tuple) or min(self.shape, default=0) < 1:
            raise ValueError(f"shape must be whole numbers of at least 1 such as 3,32,32, got {self.shape!r}")
        if len(self.shape) != 3 and ":" not in self.model:
            raise ValueError(f"shape must be channels, height and width such as 3,32,32, got {self.shape!r}")
        object.__setattr__(self, "device", usable_device(self.device))

    @property
    def name(self) -> str:
        """What is trained, for the name of a file."""
        return self.model

    def as_dict(self) -> dict[str, Any]:
        """Settings for the record."""
        return asdict(self) | {"shape": list(self.shape)}

    def make(self) -> Problem:
        """The same weights and the same batch at every call; the global generator is left as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            problem = self._problem()
        model = problem.model.to(self.device, DTYPES[self.dtype]).train()
        return Problem(model, moved(problem.batch, self.device, DTYPES[self.dtype]), problem.loss_of)

    def _problem(self) -> Problem:
        if self.model.startswith(HF):
            return self._pretrained(self.model.removeprefix(HF))
        build: Callable[..., Any] = named_function(self.model, "model") if ":" in self.model else find(self.model)
        if len(inspect.signature(build).parameters) == 1:
            return _whole_problem(self.model, called(build, self.batch_size, what=f"model {self.model!r}", form=_FORM))
        model = called(build, self.shape, self.classes, what=f"model {self.model!r}", form=_FORM)
        if not isinstance(model, nn.Module):
            raise ValueError(f"model {self.model!r} gave {an(type(model).__name__)}; expected a torch.nn.Module")
        images = torch.randn(self.batch_size, *self.shape)
        return Problem(model, (images, torch.randint(self.classes, (self.batch_size,))), _cross_entropy)

    def _pretrained(self, path: str) -> Problem:
        from steppe.text.models import Lora, classifier
        from steppe.text.tokens import limit

        model, tokenizer = classifier(path, 2, None if self.lora is None else Lora(r=self.lora), 0)
        if (most := limit(model, tokenizer)) is not None and self.length > most:
            raise ValueError(
                f"length {self.length} is more than the {most} tokens that {path} takes; give --length {most}"
            )
        words = int(getattr(model, "config").vocab_size)  # noqa: B009  mypy takes attributes of modules for tensors
        tokens = torch.randint(words, (self.batch_size, self.length))
        batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        return Problem(model, batch | {"labels": torch.randint(2, (self.batch_size,))}, _own_loss)


def check_counts(**counts: int | None) -> None:
    """Refuse what is given and below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")


def _whole_problem(name: str, given: Any) -> Problem:
    if isinstance(given, tuple) and len(given) == 3 and isinstance(given[0], nn.Module) and callable(given[2]):
        return Problem(*given)
    raise ValueError(
        f"model {name!r}: function(batch_size) gave {an(type(given).__name__)}; expected (model, batch, loss_of), "
        "where loss_of(model, batch) is the loss"
    )


def check_loss(problem: Problem, name: str) -> None:
    """Refuse what is no loss to begin with."""
    loss = problem.loss_of(problem.model, problem.batch)
    try:
        checked(loss)
    except (TypeError, ValueError) as error:
        raise ValueError(f"model {name!r}: {error}") from error


def _cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = model(**batch).loss
    return loss


def moved(batch: Any, device: str, dtype: torch.dtype) -> Any:
    """A batch on a device, what is floating in it of one dtype."""
    return pytree.tree_map_only(Tensor, lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), batch)
