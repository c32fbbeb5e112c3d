"""Reads a pickle as data: nothing in it is imported, called or set, whatever it asks for.

A pickle is a program for a stack machine (the standard library's `pickletools` documents its instructions). The machine here
builds text, numbers, lists, tuples and dictionaries. A class or function that the pickle names stays a name; calling one gives an
`Opaque`, which stands for the object and holds nothing. The exceptions are the few functions that torch rebuilds tensors with:
for them it gives a `StoredTensor`, a description of where the numbers lie. torch itself has no part in this.

Every instruction costs time and memory in proportion to the bytes it was read from, so that a small file cannot ask for much.
"""

import mmap
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple, cast

from latentlab.inert_objects import STORAGE_TYPES, Name, Opaque, Storage, UnreadablePickle, called, opaque


class Pickled(NamedTuple):
    """What a pickle holds.

    Attributes:
        content: dict, list, tuple, str, int, float, bool, bytes, None, `StoredTensor`, `Opaque` or `Name`. Entries of
            dictionaries whose key is not text are left out.
        storages: the storages it mentions: key -> type.
        names: every class and function it names, once each and in order, also where ``content`` has no trace of it.
    """

    content: Any
    storages: dict[str, str]
    names: tuple[str, ...]


def read_pickle(file: IO[bytes] | mmap.mmap) -> Pickled:
    """Read one pickle from ``file``, which is left after its last byte.

    Raises:
        UnreadablePickle: damaged, or not what torch writes.
    """
    machine = _Machine()
    try:
        content = machine.run(file)
        return Pickled(content, machine.storages, tuple(machine.names))
    except UnreadablePickle:
        raise
    except LookupError as error:
        raise UnreadablePickle("an instruction takes what no other has put there") from error
    except (ValueError, TypeError, ArithmeticError, MemoryError, EOFError) as error:
        raise UnreadablePickle(f"{type(error).__name__}: {error}") from error


class _Machine:
    """The stack machine; one method per kind of instruction."""

    def __init__(self) -> None:
        self.storages: dict[str, str] = {}
        self.names: dict[str, None] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes] | mmap.mmap) -> Any:
        """Carry out the program up to its STOP and return what is left on the stack."""
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], file)):
            if opcode.name == "STOP":
                break
            if opcode.name in _LITERALS:
                self._stack.append(argument)
            elif (make := _CONSTANTS.get(opcode.name)) is not None:
                self._stack.append(make())
            elif (act := _ACTIONS.get(opcode.name)) is not None:
                act(self, argument)
            else:
                raise UnreadablePickle(f"the instruction {opcode.name} has no place in a torch checkpoint")
        if len(self._stack) != 1 or self._marks:
            raise UnreadablePickle("it does not end with one object")
        return self._stack.pop()

    # stack and memo

    def _pop(self) -> Any:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise UnreadablePickle("an instruction lacks its operands")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def pop(self, _: Any) -> None:
        if self._marks and len(self._stack) == self._marks[-1]:
            self._marks.pop()
        else:
            self._pop()

    def pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # containers

    def tuple_of(self, length: int) -> None:
        items = [self._pop() for _ in range(length)]
        self._stack.append(tuple(reversed(items)))

    def tuple_to_mark(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def list_to_mark(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def dict_to_mark(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set(items)

    def set_to_mark(self, _: Any) -> None:
        self._pop_to_mark()
        self._stack.append(Opaque("builtins.frozenset"))

    def append(self, _: Any) -> None:
        self._extend([self._pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def set_item(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def set_items(self, _: Any) -> None:
        self._set(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise UnreadablePickle(f"it appends to a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        """Put alternating keys and values into the dictionary on top; only text as key (hashing others can be made costly)."""
        target = self._stack[-1]
        if not isinstance(target, dict | Opaque):
            raise UnreadablePickle(f"it sets items of a {type(target).__name__}")
        if len(items) % 2:
            raise UnreadablePickle("it gives a dictionary a key without a value")
        if isinstance(target, dict):
            target.update((key, value) for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str)

    # names and calls

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._named(Name(module, name))

    def name_from_stack(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise UnreadablePickle("it names a class by something that is not text")
        self._named(Name(module, name))

    def extension(self, code: int) -> None:
        self._named(Name("copyreg", f"extension {code}"))

    def _named(self, name: Name) -> None:
        self.names[str(name)] = None
        self._stack.append(name)

    def call(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self._stack.append(called(function, arguments))

    def call_with_keywords(self, _: Any) -> None:
        _keywords, _arguments, function = self._pop(), self._pop(), self._pop()
        self._stack.append(opaque(function))

    def instance(self, argument: str) -> None:
        arguments = tuple(self._pop_to_mark())
        self.name(argument)
        self._stack.append(called(self._pop(), arguments))

    def instance_from_stack(self, _: Any) -> None:
        function, *arguments = self._pop_to_mark()
        self._stack.append(called(function, tuple(arguments)))

    def build(self, _: Any) -> None:
        self._pop()  # the state would be given to the object below: none has any

    def persistent(self, _: Any) -> None:
        self._stack.append(self._storage(self._pop()))

    def _storage(self, found: Any) -> Storage | Opaque:
        """Return the storage that a persistent id ('storage', type, key, place, length[, view]) names."""
        if not isinstance(found, tuple) or len(found) < 5 or found[0] != "storage" or type(found[2]) is not str:
            raise UnreadablePickle("it refers to something outside that is no storage of torch")
        dtype = STORAGE_TYPES.get(str(found[1]))
        if dtype is None or any(part is not None for part in found[5:]):
            return opaque(found[1])
        self.storages.setdefault(found[2], dtype)
        return Storage(found[2], dtype)


# The instructions, by their names in `pickletools`.

_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Opaque("builtins.set"),
}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": _Machine.tuple_to_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.list_to_mark,
    "DICT": _Machine.dict_to_mark,
    "FROZENSET": _Machine.set_to_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.pop_mark,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.call),
    "NEWOBJ_EX": _Machine.call_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.instance_from_stack,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
