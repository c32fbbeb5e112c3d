"""Reading the tables that figures are drawn from: the ``details`` of a measurement, fresh or back from JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from latentlab.errors import UserError

Details = Mapping[str, Any]
"""``Measurement.details``: arrays, or lists after JSON, where NaN has become None."""


def column(details: Details, key: str, ndim: int = 1) -> np.ndarray:
    """Return ``details[key]`` as a float64 array with NaN for None.

    Raises:
        UserError: the key is missing, or its content is not a table of numbers with ``ndim`` axes.
    """
    if details.get(key) is None:
        raise UserError(
            f"this figure needs '{key}' in the measurement's details, which has {', '.join(details) or 'nothing'}"
        )
    try:
        values = np.asarray(details[key], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"'{key}' in the measurement's details is not a table of numbers: {error}") from error
    if values.ndim != ndim or values.size == 0:
        raise UserError(f"'{key}' in the measurement's details must have {ndim} axes, got shape {list(values.shape)}")
    return values


def columns(details: Details, *keys: str) -> tuple[np.ndarray, ...]:
    """Return several `column` of the same length [m].

    Raises:
        UserError: as `column`, or lengths differ.
    """
    found = tuple(column(details, key) for key in keys)
    lengths = [len(values) for values in found]
    if len(set(lengths)) > 1:
        pairs = ", ".join(f"{key} {length}" for key, length in zip(keys, lengths, strict=True))
        raise UserError(f"these columns of the measurement's details must have the same length: {pairs}")
    return found
