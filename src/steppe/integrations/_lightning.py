"""What the Lightning callback is made of: passes of ``training_step``, and methods replaced for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from steppe.protocol import Method


class NoLossError(Exception):
    """``training_step`` returned None: Lightning's way to skip a batch."""


class Whole:
    """Runs all passes of a micro-batch in the place of Lightning's one forward pass, and its backward hands them on.

    For methods whose first pass is not over the whole batch at the unperturbed weights: ascents on a few samples or a
    view of the batch, and directions that are known before it. `step` is the strategy's ``training_step``, `backward`
    the module's, and `scaled` what Lightning makes of a loss before it.
    """

    def __init__(
        self,
        sharp: Any,
        module: nn.Module,
        step: Callable[..., Any],
        backward: Callable[..., None],
        scaled: Callable[[Tensor], Tensor],
    ) -> None:
        self.sharp, self._module, self._step, self._backward, self._scaled = sharp, module, step, backward, scaled
        self.begins = True  # whether this micro-batch is the first of its optimizer step
        self.trains = True  # whether a backward follows: none does where averaged weights get their batch norms
        self.waiting: list[tuple[nn.Parameter, Tensor | None]] | None = None  # gradients, until Lightning wants them
        self._output: Any = None

    def training_step(self, batch: Any, *others: Any) -> Any:
        """All passes; the output of the first over the whole batch comes back, its loss without a graph."""
        if not self.trains:
            return self._step(batch, *others)
        self._output = None
        if self.begins:
            self._take()  # those of the step before: Lightning zeroes gradients after its forward pass
        try:
            self.sharp.backward(
                lambda seen: self._pass(seen, *others), batch, backward=lambda x: self._backward(self._scaled(x))
            )
        except NoLossError:
            return None
        self.waiting = self._take()  # out of the way of that zero_grad
        shown = loss_in(self._output).detach().requires_grad_()
        return {**self._output, "loss": shown} if isinstance(self._output, Mapping) else shown

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Hand on the gradients of :meth:`training_step`."""
        for param, grad in self.waiting or ():
            param.grad = grad
        self.waiting = None

    def _pass(self, batch: Any, *others: Any) -> Any:
        quiet = self.sharp.looking or self._output is not None
        with ExitStack() as changes:
            if quiet:
                changes.enter_context(replaced(self._module, log=lambda *_, **__: None))
                changes.enter_context(held_metrics(self._module))
            output = self._step(batch, *others)
        if output is None:
            raise NoLossError
        if not quiet:
            self._output = output
        return loss_in(output)

    def _take(self) -> list[tuple[nn.Parameter, Tensor | None]]:
        taken = [(p, p.grad) for p in self._module.parameters()]
        for param, _ in taken:
            param.grad = None
        return taken


def loss_in(output: Any) -> Any:
    """The loss in what ``training_step`` returns."""
    return output.get("loss") if isinstance(output, Mapping) else output


def host_scaled(trainer: Any, loss: Tensor) -> Tensor:
    """What Lightning hands to ``backward`` for a loss."""
    loss = loss / trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return loss if scaler is None else scaler.scale(loss)


def once(sharp: Method, trainer: Any, plain: Callable[..., None]) -> Callable[..., None]:
    """``backward`` for a method of one pass, whose forward Lightning has run: it knows the loss without its scale."""

    def backward(scaled: Tensor, *args: Any, **kwargs: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        sharp.backward(lambda: scaled / scale, backward=lambda loss: plain(loss * scale, *args, **kwargs))

    return backward


@contextmanager
def replaced(module: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Methods of this one object replaced for a while."""
    own = vars(module)
    before = {name: own[name] for name in methods if name in own}
    own.update(methods)
    try:
        yield
    finally:
        for name in methods:
            del own[name]
        own.update(before)


@contextmanager
def held_metrics(module: nn.Module) -> Iterator[None]:
    """Lists of metrics keep what they hold: of a model's state, those that are long are not put back with the rest."""
    metrics = (m for m in module.modules() if isinstance(m, Metric))
    lists = [(each, list(each)) for m in metrics for each in vars(m).values() if isinstance(each, list)]
    try:
        yield
    finally:
        for each, content in lists:
            each[:] = content
