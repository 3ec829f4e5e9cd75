"""LoRA layers known by what they hold (PEFT's ``lora_A``, ``lora_B``, ``base_layer``); only torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steppe._parameters import bare
from steppe._words import an


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer with adapters.

    Attributes:
        name: in the model. module: holds the factors. base: the frozen layer inside, y = W x with W of shape m x n.
    """

    name: str
    module: nn.Module
    base: nn.Module

    def factors(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """A (r x n), B (m x r) and s of every active adapter: the merged weight is W + sum of s B A."""
        held: Any = self.module
        for name in active(held):
            if name in held.lora_A:
                yield held.lora_A[name].weight, held.lora_B[name].weight, float(held.scaling[name])

    def in_use(self, stepped: Set[Tensor]) -> bool:
        """Whether adapters that an optimizer steps take part at present (a reference model's do not)."""
        if getattr(self.module, "disable_adapters", False) or getattr(self.module, "merged", False):
            return False
        return any(a in stepped or b in stepped for a, b, _ in self.factors())

    @property
    def weight(self) -> Tensor:
        """W, also while the layer is shown another one in its place."""
        weight = self.base._parameters["weight"]
        assert weight is not None
        return weight.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): outputs and inputs."""
        a, b, _ = next(self.factors())
        return b.shape[0], a.shape[1]


class Adapters:
    """The adapted layers of a model, of every kind, and where they hang: whether any of it has changed since.

    The model is looked through once; what is asked later costs a few look-ups for each adapted layer.
    """

    def __init__(self, model: nn.Module) -> None:
        root = bare(model)
        children = [(m, name, child) for m in root.modules() for name, child in m._modules.items() if child is not None]
        self._places = [place for place in [(root, "", root), *children] if _factors(place[2]) is not None]

    def marks(self) -> list[Any]:
        """Of every layer: whether it is in its place, its adapters, and those that are active."""
        return [
            (not name or parent._modules.get(name) is module, tuple(_factors(module) or ()), tuple(active(module)))
            for parent, name, module in self._places
        ]

    def refuse_merged(self, stepped: Callable[[], Set[Tensor]]) -> None:
        """Refuse to train factors that are merged into their base; `stepped` finds the parameters of the optimizer."""
        for _, name, module in self._places:
            if getattr(module, "merged", False) and not stepped().isdisjoint(module.parameters()):
                raise RuntimeError(
                    f"the adapters of LoRA layer {name} are merged into its base, where they get no gradient; call "
                    "unmerge_adapter() before training goes on"
                )


def _factors(module: nn.Module) -> Any:
    """A module's factors A by the name of the adapter; None where it is no adapted layer."""
    for name in ("lora_A", "lora_embedding_A"):
        found = getattr(module, name, None)
        if isinstance(found, (nn.ModuleDict, nn.ParameterDict)) and len(found):
            return found
    return None


def active(module: Any) -> Iterable[str]:
    """The names of the adapters that take part; all of them, where the layer knows no other state."""
    found: Iterable[str] | None = getattr(module, "active_adapters", None)
    return (_factors(module) or ()) if found is None else found


def find_layers(model: nn.Module, stepped: Set[Tensor]) -> tuple[Layer, ...]:
    """Every LoRA layer, wrappers looked through, of which this optimizer steps a factor."""
    found = [Layer(name.replace("_orig_mod.", ""), m, base) for name, m, base in _candidates(bare(model))]
    trained = [
        each for each in found if any(t in stepped and t.requires_grad for a, b, _ in each.factors() for t in (a, b))
    ]
    if not trained:
        some = f"{len(found)} LoRA layers, but none that this optimizer trains" if found else "no LoRA layer"
        raise ValueError(f"the model holds {some}; expected a PEFT model, and an optimizer built with its factors")
    return tuple(trained)


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    for name, module in model.named_modules():
        a, base = getattr(module, "lora_A", None), getattr(module, "base_layer", None)
        if not isinstance(a, nn.ModuleDict) or not isinstance(base, nn.Module):
            continue
        if len(getattr(module, "lora_embedding_A", ())) or any(_weight(factor).ndim != 2 for factor in a.values()):
            raise ValueError(
                f"LoRA layer {name} is on {an(type(base).__name__)}; expected linear layers: leave it out of the "
                "target_modules"
            )
        yield name, module, base


def _weight(factor: Any) -> Tensor:
    return factor.weight
