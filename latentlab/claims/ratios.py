"""Ratios of Fréchet distances over seeds, which most claims about generators come down to."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from latentlab.claims.evidence import LEAST_SEEDS
from latentlab.claims.intervals import difference_ends, exponential, mean_ends
from latentlab.claims.verdict import Effect, Side
from latentlab.errors import UserError


def ratio(
    name: str, first: Sequence[float], second: Sequence[float], *, threshold: float = 1.0, side: Side = "below",
    because: str = "better at all", unit: str = "seeds",
) -> Effect:  # fmt: skip
    """Return geometric mean(first) / geometric mean(second), repetitions of each by themselves (Welch on logarithms)."""
    logs = [_logs(name, values) for values in (first, second)]
    return Effect(
        name=name,
        value=math.exp(logs[0].mean() - logs[1].mean()),
        ends=exponential(difference_ends(logs[0], logs[1])),
        n=min(len(first), len(second)),
        unit=unit,
        least=LEAST_SEEDS,
        threshold=threshold,
        side=side,
        because=because,
    )


def paired_ratio(name: str, ratios: Sequence[float], **options: Any) -> Effect:
    """Return the geometric mean of the ``ratios`` of repetitions that share their seed (Student on logarithms).

    Args:
        name: what it is.
        ratios: one per repetition.
        options: ``threshold``, ``side``, ``because`` and ``unit`` as in `ratio`.
    """
    logs = _logs(name, ratios)
    settings = {"threshold": 1.0, "side": "below", "because": "better at all", "unit": "seeds", **options}
    return Effect(
        name=name,
        value=math.exp(logs.mean()),
        ends=exponential(mean_ends(logs)),
        n=len(logs),
        least=LEAST_SEEDS,
        **settings,
    )


def _logs(name: str, values: Sequence[float]) -> np.ndarray:
    """Return logarithms.

    Raises:
        UserError: a value is not positive, which no distance, norm or count of evaluations can be.
    """
    table = np.asarray(values, dtype=np.float64)
    if (table <= 0).any():
        raise UserError(f"{name}: the results hold {table.min():g} where only positive numbers can be; make them again")
    logs: np.ndarray = np.log(table)
    return logs
