"""Frozen dataclasses as plain data, and back: how the settings of a run are stored beside its results.

A stored result needs objectives, schedules and behaviours as JSON, under a name that a reader recognises, and today's
code needs them back. A class marked :func:`storable` is known by its name; nothing else looks a class up by a string.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Class = TypeVar("_Class", bound=type)

#: Under which key the name of a class is stored.
TYPE = "type"
_KNOWN: dict[str, type] = {}


def storable(cls: _Class) -> _Class:
    """Decorate a frozen dataclass for :func:`from_plain` to find by name; ``ValueError`` for others or a taken name."""
    if not isinstance(cls, type) or not is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ValueError(f"{getattr(cls, '__name__', cls)} is no frozen dataclass; expected one. Use frozen=True.")
    if TYPE in {field.name for field in fields(cls)}:
        raise ValueError(f"{cls.__name__} has a field {TYPE!r}, which stands for the class; expected none. Rename it.")
    known = _KNOWN.setdefault(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        other = f"{known.__module__}.{known.__qualname__}"
        raise ValueError(f"{cls.__name__} is the name of {other}; expected a new name. Rename it.")
    _KNOWN[cls.__name__] = cls
    return cls


def to_plain(value: object) -> Any:
    """Return a value as JSON has it: a storable dataclass as its fields and, under ``"type"``, the name of its class.

    Raises ``ValueError`` for what has no plain form, such as a module of weights or a class that is not storable.
    """
    if is_dataclass(value) and _KNOWN.get(type(value).__name__) is type(value):
        parts = {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
        return {TYPE: type(value).__name__} | parts
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    mend = "Keep weights out of stored settings, or mark the class companion.plain.storable."
    expected = "a storable dataclass, a list, a number, text or None"
    raise ValueError(f"{type(value).__name__} has no plain form; expected {expected}. {mend}")


def from_plain(data: Any) -> Any:
    """Return what :func:`to_plain` stored; ``ValueError`` for an unknown name, other fields, or refused values."""
    if isinstance(data, list):
        return tuple(from_plain(entry) for entry in data)
    if not isinstance(data, Mapping):
        return data
    name = data.get(TYPE)
    if not isinstance(name, str) or name not in _KNOWN:
        raise ValueError(f"{name!r} is not storable; expected one of {', '.join(sorted(_KNOWN))}. Import its module.")
    cls, given = _KNOWN[name], {key: from_plain(entry) for key, entry in data.items() if key != TYPE}
    unknown = set(given) - {field.name for field in fields(cls)}
    if unknown:
        raise ValueError(f"{name} has no {', '.join(sorted(unknown))}; expected its own fields alone. Leave these out.")
    missing = {field.name for field in fields(cls) if field.default is field.default_factory is MISSING} - set(given)
    if missing:
        raise ValueError(f"{name} lacks {', '.join(sorted(missing))}; expected it. Store the whole value.")
    return cls(**given)


def describe(value: object) -> str:
    """Return a line that tells apart settings that differ: the plain form, or what else says how a value was made.

    Of a tensor that is its digest, of a method what it is bound to, of all else, such as a module, a name.
    """
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {digest([value])}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = ", ".join(f"{field.name}={describe(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__name__}({parts})"
    if value is None or isinstance(value, bool | int | float | str | list | tuple):
        return repr(value)
    if hasattr(value, "__self__") and hasattr(value, "__name__"):
        return f"{describe(value.__self__)}.{value.__name__}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def digest(tensors: Iterable[Tensor]) -> str:
    """Return sixteen letters that tell apart tensors that differ, in dtype, shape or any bit."""
    return digest_of_arrays({f"{j} {tensor.dtype}": to_array(tensor) for j, tensor in enumerate(tensors)})


def digest_of_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return sixteen letters that tell apart arrays by name that differ, in name, dtype, shape or any bit."""
    whole = hashlib.sha256()
    for name in sorted(arrays):
        whole.update(f"{name} {arrays[name].dtype} {arrays[name].shape} ".encode() + arrays[name].tobytes())
    return whole.hexdigest()[:16]


def to_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor's numbers, without loss: as float32 where numpy has no such dtype, as it has no bfloat16."""
    value = tensor.detach().cpu()
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())
