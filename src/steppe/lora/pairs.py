"""Pairs of factors (x, y) that a model sees only through their product: LoRA's A and B, a query's and a key's weight.

Scaling x by c and y by 1/c changes nothing in the model; their balancedness 1/2 (||x||^2 - ||y||^2) is what is free.
PEFT's layers are known by what they hold (``lora_A``, ``lora_B``): nothing but torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steppe._parameters import bare, names_of

NamedPair = tuple[str, Any, Any]
Rule = str | Callable[[nn.Module], Iterable[NamedPair]] | Mapping[str, str] | Iterable[NamedPair]

_LORA = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_QUERY_KEY = (("query", "key"), ("q_proj", "k_proj"), ("q_lin", "k_lin"), ("to_q", "to_k"), ("wq", "wk"), ("q", "k"))


@dataclass(frozen=True, eq=False)
class Pair:
    """Two sides whose product is what counts.

    Attributes:
        name: where they are in the model.
        x: the tensors of the one side, as a rule one (LoRA's A, of shape r x in). y: of the other (B, out x r).
    """

    name: str
    x: tuple[Tensor, ...]
    y: tuple[Tensor, ...]


def lora_pairs(model: nn.Module) -> Iterator[NamedPair]:
    """Every LoRA layer's A and B, one pair for each adapter; frozen ones (inactive adapters) too.

    rsLoRA, DoRA (its magnitudes are no factor), AdaLoRA, convolutions and embeddings alike.
    """
    for prefix, module in bare(model).named_modules():
        for first, second in _LORA:
            a, b = getattr(module, first, None), getattr(module, second, None)
            if isinstance(a, (nn.ModuleDict, nn.ParameterDict)) and isinstance(b, type(a)):
                yield from ((f"{prefix}.{key}".lstrip("."), _weight(a[key]), _weight(b[key])) for key in a if key in b)


def query_key_pairs(model: nn.Module) -> Iterator[NamedPair]:
    """Every attention's query and key projection: the scores q'k see only the product of their weights (OP pairs).

    A bias is scaled with its weight, or the scores would change. Projections fused in one tensor are not found.
    """
    for prefix, module in bare(model).named_modules():
        children = dict(module.named_children())
        for query, key in _QUERY_KEY:
            if query in children and key in children and all(_is_linear(children[c]) for c in (query, key)):
                yield prefix or "attention", tuple(children[query].parameters()), tuple(children[key].parameters())
                break


RULES: dict[str, Callable[[nn.Module], Iterable[NamedPair]]] = {"lora": lora_pairs, "query_key": query_key_pairs}


def find_pairs(model: nn.Module, pairs: Rule | None, stepped: Set[Tensor] | None = None) -> tuple[Pair, ...]:
    """The pairs of a model.

    Args:
        model: where they are.
        pairs: None or "lora": LoRA's factors. "query_key": see :func:`query_key_pairs`. A mapping of parameter names,
            ``{"*.down.weight": "*.up.weight"}``. A list of (name, x, y), or a function of the model that returns one;
            x and y are parameters, names of parameters, or tuples of them.
        stepped: the parameters of the optimizer. Of "lora" and "query_key", pairs with a side that is frozen or not
            among these are left out; of your own pairs they are refused.

    Raises:
        ValueError: there is no pair, or a tensor is in two pairs. TypeError: ``pairs`` is none of the above.
    """
    parameters = {name: p for p, name in names_of(model).items()}
    found = [_pair(named, parameters) for named in _named(model, pairs, parameters)]
    own = not (pairs is None or isinstance(pairs, str))
    kept = [pair for pair in _distinct(found) if _trains(pair, stepped, own)]
    if not kept:
        raise ValueError(_nothing(pairs, len(found)))
    return tuple(kept)


def _named(model: nn.Module, pairs: Any, names: Collection[str]) -> list[NamedPair]:
    if pairs is None or isinstance(pairs, str):
        name = pairs or "lora"
        if name not in RULES:
            raise ValueError(f"pairs={name!r} was given; expected one of {', '.join(map(repr, RULES))} or a rule")
        return list(RULES[name](model))
    if isinstance(pairs, Mapping):
        return [pair for pattern, partner in pairs.items() for pair in _matching(names, pattern, partner)]
    try:
        return list(pairs(model) if callable(pairs) else pairs)
    except TypeError as error:
        if callable(pairs):
            raise
        raise TypeError(f"pairs={pairs!r} was given; expected a list of (name, x, y), a mapping of names or a function "
                        "of the model") from error  # fmt: skip


def _matching(names: Collection[str], pattern: str, partner: str) -> Iterator[NamedPair]:
    expression = re.compile("(.*)".join(map(re.escape, pattern.split("*"))))
    for name in names:
        if (match := expression.fullmatch(name)) is not None:
            pieces = [*match.groups(), *[""] * partner.count("*")]
            other = "".join(text + piece for text, piece in zip(partner.split("*"), [*pieces, ""], strict=False))
            if other not in names:
                raise ValueError(
                    f"{name} matches {pattern!r}; expected its partner {other!r} among the model's parameters"
                )
            yield name, name, other


def _pair(named: Any, parameters: Mapping[str, Tensor]) -> Pair:
    if not isinstance(named, (tuple, list)) or len(named) != 3 or not isinstance(named[0], str):
        raise TypeError(f"pairs holds {_short(named)}; expected (name, x, y)")
    name, x, y = named
    return Pair(name.replace("_orig_mod.", ""), _side(name, x, parameters), _side(name, y, parameters))


def _side(name: str, side: Any, parameters: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    parts = side if isinstance(side, (tuple, list)) else (side,)
    tensors = tuple(parameters.get(p) if isinstance(p, str) else p for p in parts)
    for part, tensor in zip(parts, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"pair {name!r} holds {_short(part)}; expected a parameter of the model or its name")
    if not tensors:
        raise ValueError(f"pair {name!r} has an empty side; expected a parameter on each")
    return tensors  # type: ignore[return-value]


def _distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """Each pair once, though a tied layer may be met under two names; no tensor in two pairs."""
    kept: list[Pair] = []
    holder: dict[int, Pair] = {}
    for pair in pairs:
        ids = [id(t) for t in (*pair.x, *pair.y)]
        before = holder.get(ids[0])
        if before is not None and [id(t) for t in (*before.x, *before.y)] == ids:
            continue
        other = next((holder[i].name for i in ids if i in holder), pair.name if len(set(ids)) < len(ids) else None)
        if other is not None:
            raise ValueError(
                f"a tensor of pair {pair.name!r} is also in pair {other!r}; expected each tensor in one pair: "
                "name the pairs with pairs=[(name, x, y), ...]"
            )
        holder.update(dict.fromkeys(ids, pair))
        kept.append(pair)
    return _named_apart(kept)


def _named_apart(pairs: list[Pair]) -> list[Pair]:
    names = [p.name for p in pairs]
    twice = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ValueError(f"two pairs are called {twice!r}; expected a name for each")
    return pairs


def _trains(pair: Pair, stepped: Set[Tensor] | None, own: bool) -> bool:
    """Whether both sides are trained; of the user's own pairs others are refused."""
    trains = all(t.requires_grad and (stepped is None or t in stepped) for t in (*pair.x, *pair.y))
    if own and not trains:
        raise ValueError(
            f"pair {pair.name!r} holds a tensor that is frozen or not in the optimizer; expected both sides trained"
        )
    return trains


def _nothing(pairs: Rule | None, found: int) -> str:
    if found:
        return (
            f"none of the model's {found} pairs has both sides trainable and in this optimizer: build the optimizer "
            "with them, or name others with pairs=..."
        )
    what = {None: "LoRA layer (lora_A with lora_B)", "lora": "LoRA layer (lora_A with lora_B)"}
    what["query_key"] = "attention with separate query and key projections"
    missing = what.get(pairs, "pair") if pairs is None or isinstance(pairs, str) else "pair"
    return (
        f"the model holds no {missing} to balance; expected at least one: name the pairs with "
        "pairs={'*.down.weight': '*.up.weight'} or pairs=[(name, x, y), ...]"
    )


def _weight(factor: Any) -> Any:
    return factor.weight if isinstance(factor, nn.Module) else factor


def _is_linear(module: nn.Module) -> bool:
    """A layer with a weight and perhaps a bias of its own, and nothing inside (an adapter's wrapper has)."""
    return isinstance(getattr(module, "weight", None), Tensor) and not any(True for _ in module.children())


def _short(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
