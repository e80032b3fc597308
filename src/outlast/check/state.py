"""State that a module holds outside its state_dict: what a checkpoint does not have, and a resumed run loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_TORCHS_OWN = frozenset(vars(nn.Module())) | {"training"}


def attributes(model: nn.Module) -> dict[str, Any]:
    """{dotted name: value} of tensors and numbers that are attributes of modules and not in the state_dict; copies.

    Lists, tuples and dicts are looked into. A buffer that is not persistent counts: it is not saved either.
    """
    found: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _TORCHS_OWN:
                found.update(_leaves(f"{prefix}.{name}".lstrip("."), value, 0))
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None:
                found[f"{prefix}.{name}".lstrip(".")] = buffer.detach().clone()
    return found


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names that have another value now, or that came or went."""
    return sorted(name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name)))


def _leaves(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        if not isinstance(value, nn.Parameter):
            yield name, value.detach().clone()
    elif isinstance(value, int | float):
        yield name, value
    elif depth < 2 and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(f"{name}[{key!r}]", item, depth + 1)
    elif depth < 2 and isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _leaves(f"{name}[{number}]", item, depth + 1)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return False
    return bool(one == other)
