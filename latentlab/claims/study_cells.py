"""The table of a study as claims see it: tokenizers under every generator and guidance scale, and correlations over them.

The units are tokenizers: means over seeds, without controls (they are made out of other tokenizers, and their answer is known
beforehand) and without failed rows. A statistic is made in every cell (generator x guidance) and combined over the cells; its
interval resamples tokenizers, the same ones in all cells.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from analyses.correlation import Method, is_constant, of_counts
from analyses.regression import leave_out
from analyses.resampling import drawn_counts
from latentlab.claims.statistic import Statistic
from latentlab.study.analysis.flags import dependent_tokenizers
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.table import StudyTable, mixed_sizes

LEAST_TOKENIZERS = 12
"""Tokenizers from which on they may decide: resampling fewer gives intervals that are too short."""

_LEAST_PAIRS = 4
_LEAST_FITTED = 6
_COMMON = 0.75
_HEADLINE = "gfd_fashion_classifier"
"""The study's own judge, on which no tokenizer was trained."""


@dataclass(frozen=True)
class StudyCells:
    """The study.

    Attributes:
        table: what was read, without controls.
        cells: (generator, guidance) -> one row per tokenizer, all with the same index; NaN where a cell is missing.
        command: makes the study.
        sizes: which numbers of images differ between its rows, in words; distances of unequal ones do not compare.
        left_out: which tokenizers are not counted and why, in words.
    """

    table: StudyTable
    cells: Mapping[tuple[str, float], pd.DataFrame]
    command: str
    sizes: str = ""
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: StudyTable, command: str) -> "StudyCells":
        """Take the rows that are no controls and no copies. What is missing in one, whatever its ``error`` says, is NaN."""
        copies = table.copies()
        left_out = tuple(f"{name} is not counted: it is a copy of {other}" for name, other in copies.items())
        own = table.rows[table.rows["control"].fillna("") == ""]
        sizes = mixed_sizes(own, table.names("count"))
        return cls._made(table, own[~own["tokenizer"].isin(copies)], command, sizes, left_out)

    @classmethod
    def _made(
        cls, table: StudyTable, rows: pd.DataFrame, command: str, sizes: str, left_out: tuple[str, ...]
    ) -> "StudyCells":
        kept = StudyTable(rows.reset_index(drop=True), table.columns)
        names = list(dict.fromkeys(kept.rows["tokenizer"]))
        keys = kept.rows[["generator", "guidance"]].drop_duplicates().itertuples(index=False)
        cells = {(str(g), float(s)): kept.by_tokenizer(g, s).set_index("tokenizer").reindex(names) for g, s in keys}
        return cls(kept, cells, command, sizes, left_out)

    def judged_fairly(self, target: str) -> "StudyCells":
        """Return the study without the tokenizers that were trained on the features that give ``target``."""
        rows = self.table.rows
        learned = dependent_tokenizers(AnalysisPlan(), target, rows.groupby("tokenizer", sort=False).first())
        if not learned:
            return self
        told = f"not counted, as they learned from the features that judge them: {', '.join(learned)}"
        others = rows[~rows["tokenizer"].isin(learned)]
        return self._made(self.table, others, self.command, self.sizes, (*self.left_out, told))

    @property
    def tokenizers(self) -> list[str]:
        """Names, in order."""
        return list(dict.fromkeys(self.table.rows["tokenizer"]))

    @property
    def targets(self) -> list[str]:
        """Distances of samples from real images, by judge; the study's own judge first."""
        names = [n for n in self.table.names("quality") if n.startswith("gfd_")]
        return sorted((n for n in names if not n.startswith("gfd_reconstructions_")), key=lambda n: n != _HEADLINE)

    @property
    def measurements(self) -> list[str]:
        """Headline measurements of latents, without companions, that vary and that three quarters of the tokenizers have."""
        rows = self.table.rows.groupby("tokenizer")[[*self.table.names("measurement")]].mean()
        names = [n for n in self.table.names("measurement") if "." not in n]
        return [n for n in names if rows[n].notna().mean() >= _COMMON and rows[n].nunique() > 1]

    def has(self, name: str) -> bool:
        """Whether a column has any number."""
        return name in self.table.rows and bool(self.table.rows[name].notna().any())

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each tokenizer is drawn, [1+r,n]; the first row is the tokenizers as they are."""
        n = len(self.tokenizers)
        return np.vstack([np.ones(n), drawn_counts(n)])

    def _each(
        self, columns: Sequence[str], least: int, function: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> Statistic:
        """Apply ``function`` (counts [1+r,m], numbers [m,columns] -> [1+r]) to the m tokenizers of every cell that have all."""
        found, sizes = [], []
        for frame in self.cells.values():
            numbers = frame.reindex(columns=list(columns)).to_numpy(dtype=np.float64)
            whole = np.isfinite(numbers).all(1)
            if whole.sum() < least or is_constant(numbers[whole]).any():
                found.append(np.full(len(self.counts), np.nan))
                continue
            with np.errstate(invalid="ignore", divide="ignore"):  # resamplings that draw none of these tokenizers
                found.append(function(self.counts[:, whole], numbers[whole]))
            sizes.append(int(whole.sum()))
        return Statistic(np.stack(found), min(sizes, default=0))

    def correlation(self, x: str, y: str, method: Method = "spearman") -> Statistic:
        """Return the correlation of two columns, NaN in cells where fewer than 4 tokenizers have both or one does not vary."""
        return self._each([x, y], _LEAST_PAIRS, lambda counts, table: of_counts(table, method)(counts))

    def explained(self, predictors: Sequence[str], y: str, whole: Sequence[str]) -> Statistic:
        """Return R^2 of y fitted linearly on predictors, for left-out tokenizers; over those that have all of ``whole``."""
        columns = [*whole, y]
        places = [columns.index(name) for name in predictors]
        return self._each(
            columns, _LEAST_FITTED, lambda counts, table: left_out_r2(counts, table[:, places], table[:, -1])
        )

    def scale(self) -> str:
        """Say what the study is of."""
        rows = self.table.rows
        generators, scales = rows["generator"].nunique(), rows["guidance"].nunique()
        seeds = int(rows.groupby(["generator", "guidance", "tokenizer"]).size().min())
        samples = f", {int(rows['n_samples'].min()):,} samples" if self.has("n_samples") else ""
        return (
            f"{len(self.tokenizers)} tokenizers, {generators} generators x {scales} guidance scales, "
            f"at least {seeds} seed{'s' * (seeds > 1)} each{samples}"
        )


def left_out_r2(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return R^2 of left-out units in resamplings, [r]: 1 - their squared errors / those of the mean of the others.

    Resampled are the errors, not the fits: a unit drawn twice would otherwise predict itself.

    Args:
        counts: how often each unit is drawn, [r,n].
        x: predictors [n,m].
        y: outcome [n].
    """
    n = len(y)
    errors = y - leave_out(x, y, np.arange(n)).predicted
    mean_errors = (y - y.mean()) * n / (n - 1)
    r2: np.ndarray = 1 - (counts @ errors**2) / (counts @ mean_errors**2)
    return r2
