"""Statistics that are made in every cell of a study and resampled together, so that they can be combined and compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Statistic:
    """A number per cell, estimated and resampled.

    Attributes:
        table: [cells,1+r], first the estimate, then its replicates; NaN where a cell has none.
        n: tokenizers behind it, in the cell with fewest.
    """

    table: np.ndarray
    n: int

    @property
    def value(self) -> float:
        """Estimate, mean over the cells that have one."""
        return float(self.mean().table[0, 0])

    @property
    def replicates(self) -> np.ndarray:
        """Of `value`, [r]."""
        replicates: np.ndarray = self.mean().table[0, 1:]
        return replicates

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Statistic":
        """Return the statistic after an elementwise function."""
        return replace(self, table=function(self.table))

    def mean(self) -> "Statistic":
        """Return the mean over cells, [1,1+r]."""
        there = np.isfinite(self.table)
        with np.errstate(invalid="ignore"):  # 0 / 0 where no cell has one
            return replace(self, table=(np.where(there, self.table, 0).sum(0) / there.sum(0))[None])

    def __sub__(self, other: "Statistic") -> "Statistic":
        """Return the difference, cell by cell."""
        return Statistic(self.table - other.table, min(self.n, other.n))


def average(found: Sequence[Statistic]) -> Statistic:
    """Return the mean of statistics of the same cells."""
    return Statistic(np.mean([one.table for one in found], axis=0), min(one.n for one in found))


def place(own: Statistic, rest: Sequence[Statistic]) -> Statistic:
    """Return the place of ``own`` by size among all that a cell has, as a share of them: 1/m for the largest of m."""
    above = sum(((one.table > own.table).astype(float) for one in rest), np.zeros_like(own.table))
    there = sum((np.isfinite(one.table).astype(float) for one in rest), np.zeros_like(own.table))
    places = np.where(np.isfinite(own.table), (1 + above) / (1 + there), np.nan)
    return Statistic(places, min([own.n, *(one.n for one in rest)]))
