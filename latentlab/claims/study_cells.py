"""The table of a study as claims see it: tokenizers under every generator and guidance scale, and correlations over them.

The units are tokenizers: means over seeds, without controls (they are made out of other tokenizers, and their answer is known
beforehand) and without failed rows. A statistic is made in every cell (generator x guidance) and combined over the cells; its
interval resamples tokenizers, the same ones in all cells, and each by itself: tokenizers of one cluster are alike, so that
intervals are somewhat short.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from analyses.correlation import Method, of_counts
from analyses.partial_correlation import partial_of_counts
from analyses.regression import leave_out
from analyses.resampling import drawn_counts
from latentlab.claims.statistic import Statistic
from latentlab.study.analysis.flags import dependent_tokenizers
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.table import StudyTable, mixed_sizes

LEAST_TOKENIZERS = 12
"""Tokenizers from which on they may decide: resampling fewer gives intervals that are too short."""

_LEAST_DIFFERENT = 5
"""Tokenizers that must differ from a column's most frequent value: of fewer, a single one decides its correlations."""

_FEWEST = _LEAST_DIFFERENT + 1
"""Tokenizers from which on a cell has a statistic."""

_COMMON = 0.75
"""Share of the tokenizers that must have a measurement for it to be listed."""

_ROUNDING = 1e-12
"""Difference, relative to the largest of a column, below which two of its numbers are equal."""

_HEADLINE = "gfd_fashion_classifier"
"""The study's own judge, on which no tokenizer was trained."""


@dataclass(frozen=True)
class StudyCells:
    """The study.

    Tokenizers that the study's own analysis holds out for validation count as well, since a rank correlation fits nothing.

    Attributes:
        table: what was read, without controls.
        cells: (generator, guidance) -> one row per tokenizer, all with the same index; NaN where a cell is missing.
        command: makes the study.
        plan: what the study's own analysis asks, and which clusters learned from which judge.
        sizes: which numbers of images differ between its rows, in words; distances of unequal ones do not compare.
        left_out: which tokenizers are not counted and why, in words.
    """

    table: StudyTable
    cells: Mapping[tuple[str, float], pd.DataFrame]
    command: str
    plan: AnalysisPlan
    sizes: str = ""
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: StudyTable, command: str, plan: AnalysisPlan = AnalysisPlan()) -> "StudyCells":
        """Take the rows that are no controls and no copies. What is missing in one, whatever its ``error`` says, is NaN."""
        copies = table.copies()
        left_out = tuple(f"{name} is not counted: it is a copy of {other}" for name, other in copies.items())
        own = table.rows[table.rows["control"].fillna("") == ""]
        sizes = mixed_sizes(own, table.names("count"))
        return cls._made(table, own[~own["tokenizer"].isin(copies)], command, plan, sizes, left_out)

    @classmethod
    def _made(
        cls,
        table: StudyTable,
        rows: pd.DataFrame,
        command: str,
        plan: AnalysisPlan,
        sizes: str,
        left_out: tuple[str, ...],
    ) -> "StudyCells":
        kept = StudyTable(rows.reset_index(drop=True), table.columns)
        names = list(dict.fromkeys(kept.rows["tokenizer"]))
        keys = kept.rows[["generator", "guidance"]].drop_duplicates().itertuples(index=False)
        cells = {(str(g), float(s)): kept.by_tokenizer(g, s).set_index("tokenizer").reindex(names) for g, s in keys}
        return cls(kept, cells, command, plan, sizes, left_out)

    def judged_fairly(self, target: str) -> "StudyCells":
        """Return the study without the tokenizers that were trained on the features that give ``target``."""
        rows = self.table.rows
        learned = dependent_tokenizers(self.plan, target, rows.groupby("tokenizer", sort=False).first())
        if not learned:
            return self
        told = f"not counted, as they learned from the features that judge them: {', '.join(learned)}"
        return self._without(learned, [told])

    def complete(self, columns: Sequence[str]) -> "StudyCells":
        """Return the study without the tokenizers that lack one of ``columns``, so that statistics of them compare."""
        there = self.table.rows.groupby("tokenizer", sort=False)[list(columns)].count() > 0
        lacking_by: dict[str, list[str]] = {}
        for name, row in zip(there.index, there.to_numpy(), strict=True):
            if not row.all():
                lacking_by.setdefault(", ".join(there.columns[~row]), []).append(str(name))
        told = [f"not counted, as they lack {what}: {', '.join(names)}" for what, names in lacking_by.items()]
        return self._without([name for names in lacking_by.values() for name in names], told)

    def _without(self, tokenizers: Sequence[str], told: Sequence[str]) -> "StudyCells":
        rows = self.table.rows
        others = rows[~rows["tokenizer"].isin(tokenizers)]
        return self._made(self.table, others, self.command, self.plan, self.sizes, (*self.left_out, *told))

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
        """Headline measurements of latents, without companions and `unlisted` ones."""
        return [name for name in self._headline if name not in self.unlisted]

    @cached_property
    def unlisted(self) -> dict[str, str]:
        """Headline measurements that hardly vary or that a quarter of the tokenizers lack, and which of it, in words."""
        means = self.table.rows.groupby("tokenizer")[self._headline].mean()
        told = {name: _why_unlisted(means[name].to_numpy(dtype=np.float64), name) for name in self._headline}
        return {name: why for name, why in told.items() if why}

    @property
    def _headline(self) -> list[str]:
        return [name for name in self.table.names("measurement") if "." not in name]

    def has(self, name: str) -> bool:
        """Whether a column has any number."""
        return name in self.table.rows and bool(self.table.rows[name].notna().any())

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each tokenizer is drawn, [1+r,n]; the first row is the tokenizers as they are."""
        n = len(self.tokenizers)
        return np.vstack([np.ones(n), drawn_counts(n)])

    def only(self, generator: str, guidance: float) -> "StudyCells":
        """Return the study with one of its cells, and still all tokenizers, so that statistics resample the same ones."""
        return replace(self, cells={(generator, guidance): self.cells[generator, guidance]})

    def correlation(self, x: str, y: str, method: Method = "spearman") -> Statistic:
        """Return the correlation of two columns, NaN in cells that `lacking` finds fault with."""
        return self._each([x, y], lambda counts, table: of_counts(table, method)(counts))

    def partial_correlation(self, x: str, y: str, *given: str) -> Statistic:
        """Return the rank correlation of two columns given others, over the tokenizers that have all.

        NaN in cells that `lacking` finds fault with, and where the others decide the order by one of the two.
        """
        return self._each([x, y, *given], lambda counts, table: partial_of_counts(table, "spearman")(counts))

    def _each(self, columns: Sequence[str], function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Statistic:
        """Apply ``function`` (counts [1+r,m], numbers [m,columns] -> [1+r]) to the m tokenizers of every cell that have all."""
        table, sizes = np.full((len(self.cells), len(self.counts)), np.nan), []
        for i, (numbers, whole) in enumerate(self._complete(columns)):
            if lacking(numbers, columns):
                continue
            counts = self.counts[:, whole]
            drawn = counts.any(axis=1)  # some resamplings draw none of these tokenizers
            found = function(counts[drawn], numbers)
            if np.isfinite(found[0]):
                table[i, drawn] = found
                sizes.append(len(numbers))
        return Statistic(table, min(sizes, default=0))

    def _complete(self, columns: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the numbers [m,columns] of the tokenizers of every cell that have all, and which ones these are, [n]."""
        for frame in self.cells.values():
            numbers = frame.reindex(columns=list(columns)).to_numpy(dtype=np.float64)
            whole = np.isfinite(numbers).all(1)
            yield numbers[whole], whole

    def empty_cells(self, *columns: str) -> tuple[str, ...]:
        """Name the cells that have no statistic of these columns."""
        found = zip(self.cells, self._complete(columns), strict=True)
        return tuple(cell_name(*cell) for cell, (numbers, _) in found if lacking(numbers, columns))

    def why_none(self, *columns: str) -> str:
        """Return in words why no cell has a statistic of these columns."""
        reasons = dict.fromkeys(lacking(numbers, columns) for numbers, _ in self._complete(columns))
        told = ", ".join(why for why in reasons if why)
        return told or f"of {_listed(columns)} one decides the order of tokenizers by another"

    def explained(self, predictors: Sequence[str], y: str, whole: Sequence[str]) -> float:
        """Return R^2 of left-out tokenizers: y predicted linearly from predictors, each by the fit of the others.

        Mean over the cells that `lacking` finds no fault with, of the tokenizers that have all of ``whole``; NaN without any.

        Raises:
            UserError: the predictors are linearly dependent.
        """
        columns = [*whole, y]
        places = [columns.index(name) for name in predictors]
        tables = [numbers for numbers, _ in self._complete(columns) if not lacking(numbers, columns)]
        found = [leave_out(one[:, places], one[:, -1], np.arange(len(one))).r2 for one in tables]
        return float(np.mean(found)) if found else float("nan")

    def scale(self) -> str:
        """Say what the study is of: the tokenizers whose samples have been judged, and their seeds."""
        rows = self.table.rows
        judged = rows[rows[self.targets].notna().any(axis=1)]
        rows = judged if len(judged) else rows
        generators, scales = rows["generator"].nunique(), rows["guidance"].nunique()
        seeds = int(rows.groupby(["generator", "guidance", "tokenizer"]).size().min())
        samples = f", {int(rows['n_samples'].min()):,} samples" if self.has("n_samples") else ""
        return (
            f"{rows['tokenizer'].nunique()} tokenizers, {generators} generators x {scales} guidance scales, "
            f"at least {seeds} seed{'s' * (seeds > 1)} each{samples}"
        )


def cell_name(generator: str, guidance: float) -> str:
    """Return a cell in words."""
    return f"{generator} at guidance {guidance:g}"


def lacking(numbers: np.ndarray, columns: Sequence[str]) -> str:
    """Return in words why ``numbers`` [n,columns] of tokenizers give no statistic; empty where they do."""
    n = len(numbers)
    if n < _FEWEST:
        return f"{n} tokenizer{'s have' if n != 1 else ' has'} {_listed(columns)}, {_FEWEST} are needed"
    for name, column in zip(columns, numbers.T, strict=True):
        different = n - _most_alike(column)
        if different < _LEAST_DIFFERENT:
            return f"{name} is the same for all {f'but {different} of ' if different else ''}{n} tokenizers"
    return ""


def _most_alike(column: np.ndarray) -> int:
    """Return how many of the numbers [n] are equal but for rounding, at most."""
    ordered = np.sort(column)
    beyond = np.searchsorted(ordered, ordered + _ROUNDING * np.abs(ordered).max(), side="right")
    return int((beyond - np.arange(len(ordered))).max())


def _why_unlisted(values: np.ndarray, name: str) -> str:
    """Return in words why a measurement is not listed, from the means of all tokenizers, [n] with NaN; empty where it is."""
    known = values[np.isfinite(values)]
    if len(known) < _COMMON * len(values):
        return f"{name} is there for {len(known)} of {len(values)} tokenizers"
    return lacking(known[:, None], [name])


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
