"""Which names a checkpoint may hold without anybody asking why: tensors, plain data, and records of training.

A pickle names a class or function to have it called when it is loaded. `latentlab.inert_pickle` calls none; whoever converts a
file should still learn that it names `os.system`, since other programs would have run it. Nothing here imports what it lists.
"""

import re

from latentlab.inert_objects import REBUILDERS, STORAGE_TYPES

_PLAIN = """
    builtins: bool bytearray bytes complex dict float frozenset int list object range set slice str tuple
    __builtin__: bool bytearray complex dict float frozenset int list long object set slice str tuple unicode xrange
    collections: Counter OrderedDict defaultdict deque
    copyreg: __newobj__ _reconstructor
    copy_reg: _reconstructor
    _codecs: encode
    argparse: Namespace
    types: SimpleNamespace
    functools: partial
    datetime: date datetime time timedelta timezone
    decimal: Decimal
    fractions: Fraction
    pathlib: Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath
    pathlib._local: Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath
    typing: Any
    uuid: UUID
    torch: Generator Size bool device
    torch.serialization: _get_layout
    numpy: bool bool_ dtype ndarray
"""
"""Module: classes and functions of Python, torch and numpy that only make values; `functools.partial` calls nothing itself."""

_FAMILIES = (
    r"torch\._utils\._rebuild_\w+",
    r"torch\.(storage\.)?(Typed|Untyped)Storage",
    r"torch\.(b?float|q?u?int|complex)\d+(_\w+)?",
    r"numpy\.(float|u?int|complex|str|bytes|datetime|timedelta)\d*_?",
    r"numpy\.dtypes\.\w+DType",
    r"numpy\._?core\.(multiarray|numeric)\.(scalar|_reconstruct|_frombuffer)",
    r"numpy\.random\.(_pickle\.__\w+_ctor|bit_generator\.__pyx_unpickle_\w+|\w+\.[A-Z]\w*)",
    # classes, which begin with a capital letter, of optimisers, layers, and packages of settings and training loops
    r"(torch\.(optim|nn)|omegaconf|pytorch_lightning|lightning|lightning_fabric|torchmetrics)(\._?[a-z]\w*)*\.[A-Z]\w*",
    r"(yacs|easydict|ml_collections|addict)(\._?[a-z]\w*)*\.[A-Z]\w*",
)

_KNOWN = frozenset(
    (
        *REBUILDERS,
        *STORAGE_TYPES,
        *(
            f"{module.strip()}.{name}"
            for module, _, names in (line.partition(":") for line in _PLAIN.strip().splitlines())
            for name in names.split()
        ),
    )
)
_PATTERN = re.compile("|".join(f"(?:{family})" for family in _FAMILIES))


def is_ordinary(name: str) -> bool:
    """Return whether ``module.name`` is part of a tensor, of plain data, or of what training loops leave in checkpoints."""
    return name in _KNOWN or _PATTERN.fullmatch(name) is not None
