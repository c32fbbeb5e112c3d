"""Whether weights fit a network: one error that lists what is missing, left over or of another shape."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from latentlab.errors import UserError

_SHOWN = 6

Shapes = Mapping[str, Tensor | Sequence[int]]
"""Expected tensors, or their shapes, by name."""


def check_fits(state: Mapping[str, Tensor], expected: Shapes, source: str, remedy: str = "") -> None:
    """Raise `UserError` unless ``state`` has exactly the names and shapes of ``expected``.

    Args:
        state: name -> tensor.
        expected: of the network.
        source: what the message begins with: the file, and what it should fit.
        remedy: what the message ends with.
    """
    if problems := misfits(state, expected):
        raise UserError(f"{source}: {'; '.join(problems)}{remedy}")


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise `UserError` when weights are NaN or infinite; says which."""
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise UserError(f"{source} holds NaN or infinite weights ({_listed(bad)}): the training that made it failed")


def misfits(state: Mapping[str, Tensor], expected: Shapes) -> list[str]:
    """Describe what ``state`` lacks, has too much, or has in another shape; one entry per kind, empty when it fits."""
    shapes = {name: list(one.shape if isinstance(one, Tensor) else one) for name, one in expected.items()}
    found = {
        "missing": [name for name in shapes if name not in state],
        "unexpected": [name for name in state if name not in shapes],
        "of another shape": [
            f"{name} is {list(state[name].shape)} instead of {shape}"
            for name, shape in shapes.items()
            if name in state and list(state[name].shape) != shape
        ],
    }
    return [f"{len(names)} {kind} ({_listed(names)})" for kind, names in found.items() if names]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
