"""What a pickle's objects become when it is read as data: names, placeholders, and descriptions of tensors.

Nothing here imports or calls what a name stands for, and torch has no part in it. `called` gives a placeholder for the result of
every call but those of the few functions that torch rebuilds tensors with, which have descriptions of the tensor as result.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_DIMENSIONS = 16
_MAX_ARGUMENTS = 16  # a tuple that the pickle keeps may be long, and given to a million calls


class UnreadablePickle(Exception):
    """The pickle is damaged, or does what no torch checkpoint does; the text says what."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Opaque:
    """Stands for an object that is not rebuilt; ``kind`` is the name of its class or of the function that makes it."""

    kind: str


@dataclass(frozen=True)
class Storage:
    """A block of numbers beside the pickle: its name there and the type of its numbers, as torch spells it (``float32``)."""

    key: str
    dtype: str


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as a view of a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


STORAGE_TYPES = {
    f"{module}.{kind}Storage": dtype
    for module in ("torch", "torch.cuda")
    for kind, dtype in (
        ("Double", "float64"),
        ("Float", "float32"),
        ("Half", "float16"),
        ("BFloat16", "bfloat16"),
        ("Long", "int64"),
        ("Int", "int32"),
        ("Short", "int16"),
        ("Char", "int8"),
        ("Byte", "uint8"),
        ("Bool", "bool"),
    )
}
"""Name of torch's storage class -> type of its numbers."""


def opaque(function: Any) -> Opaque:
    """Return a placeholder for what ``function`` makes."""
    return Opaque(str(function) if isinstance(function, Name) else type(function).__name__)


def called(function: Any, arguments: Any) -> Any:
    """Return what stands for ``function(*arguments)``."""
    if not isinstance(arguments, tuple):
        raise UnreadablePickle("it calls something without a tuple of arguments")
    rebuild = REBUILDERS.get(str(function)) if isinstance(function, Name) else None
    if rebuild is None:
        return opaque(function)
    if len(arguments) > _MAX_ARGUMENTS:
        raise UnreadablePickle(f"it rebuilds a tensor from {len(arguments)} arguments")
    return rebuild(*arguments)


# What stands for the functions that torch rebuilds tensors with; their parameters are those of torch's functions.


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor | Opaque:
    if isinstance(storage, Opaque):
        return storage
    lengths = (size, stride)
    if not isinstance(storage, Storage) or type(offset) is not int or not all(map(_is_shape, lengths)):
        raise UnreadablePickle("a tensor is described by something else than a storage and whole numbers")
    if len(size) != len(stride):
        raise UnreadablePickle("a tensor has more sizes than strides, or fewer")
    return StoredTensor(storage, offset, size, stride)


def _is_shape(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= MAX_DIMENSIONS and all(type(value) is int for value in values)


def _parameter(data: Any, *_: Any) -> Any:
    return data if isinstance(data, StoredTensor) else opaque(data)


def _with_attributes(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """Return a tensor that carries attributes of its own, without them; anything but a plain tensor or parameter is opaque."""
    plain = str(kind) in ("torch.Tensor", "torch.nn.parameter.Parameter") and str(function) in _TENSORS
    return called(function, arguments) if plain else opaque(kind)


def _size(values: Any, *_: Any) -> Any:
    return values if isinstance(values, tuple) else Opaque("torch.Size")


def _empty_dict(*_: Any) -> dict[str, Any]:
    return {}


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
REBUILDERS: Mapping[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.Size": _size,
    "collections.OrderedDict": _empty_dict,  # filled by the instructions that follow
    "collections.defaultdict": _empty_dict,
}
"""Functions that torch rebuilds tensors and their containers with -> what gives a description of the result."""
