"""What to know before believing a number: missing cells, constant or dependent columns, doubles, mixed sample sizes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analyses.correlation import is_constant
from latentlab.study.analysis.plan import AnalysisPlan
from latentlab.study.analysis.points import Points, rows_of
from latentlab.study.table import StudyTable

FEW = 10
"""Below this number of points a correlation is warned about: its interval is too narrow and one tokenizer decides it."""

_SHOWN = 5


@dataclass(frozen=True)
class Flag:
    """One thing to know.

    Attributes:
        flag: missing, constant, duplicated, sample sizes or dependent judge.
        column: it is about; empty for whole tokenizers.
        tokenizers: concerned, in order.
        text: one line.
    """

    flag: str
    column: str
    tokenizers: tuple[str, ...]
    text: str

    def record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**asdict(self), "tokenizers": list(self.tokenizers)}


def find_flags(table: StudyTable, plan: AnalysisPlan, cells: Sequence[Points]) -> list[Flag]:
    """Return everything to flag about the columns of a plan, each thing once."""
    return [
        *_missing_rows(cells),
        *_missing_values(table, plan, cells),
        *_constant(plan, cells),
        *_duplicated(plan, cells),
        *_sample_sizes(cells),
        *_dependent(plan, cells),
    ]


def listed(names: Sequence[str]) -> str:
    """Return the first names and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def dependent_tokenizers(plan: AnalysisPlan, target: str, rows: pd.DataFrame) -> list[str]:
    """Return the tokenizers among ``rows`` (by label) that were trained on the features that give ``target``."""
    return [str(name) for name in rows.index[rows["cluster"].isin(plan.learned_from(target))]]


def fairly_judged(plan: AnalysisPlan, target: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without `dependent_tokenizers`: their distances flatter them, whatever is correlated or fitted."""
    return rows.drop(index=dependent_tokenizers(plan, target, rows))


def _missing_rows(cells: Sequence[Points]) -> Iterator[Flag]:
    everyone = list(dict.fromkeys(name for one in cells for name in one.all.index))
    for one in cells:
        absent = tuple(str(name) for name in everyone if name not in one.all.index)
        if absent:
            yield Flag("missing", "", absent, f"no row with {one.setting}: {listed(absent)}")


def _missing_values(table: StudyTable, plan: AnalysisPlan, cells: Sequence[Points]) -> Iterator[Flag]:
    for name in dict.fromkeys((*plan.targets, *plan.predictors, *plan.covariates)):
        of_name: dict[str, list[str]] = {}
        for one in cells:
            if name in plan.targets and not one.known([name]):
                yield Flag("missing", name, (), f"{name}: no value with {one.setting}")
                continue
            rows = rows_of(table, one.setting)
            for label in rows.loc[rows[name].isna() & ~_judged_elsewhere(rows, name, one), "tokenizer"]:
                of_name.setdefault(str(label), []).append(str(one.setting))
        if of_name:
            count = sum(map(len, of_name.values()))
            text = f"{name}: {count} cells without a value, left out ({listed(list(of_name))})"
            yield Flag("missing", name, tuple(of_name), text)


def _judged_elsewhere(rows: pd.DataFrame, name: str, cell: Points) -> pd.Series:
    """Return which rows of a study need no value, since the plan asks for it with another seed of their tokenizer."""
    if "error" not in rows:
        return pd.Series(False, index=rows.index)
    return (rows["error"] == "") & rows["tokenizer"].map(cell.all[name].notna())


def _constant(plan: AnalysisPlan, cells: Sequence[Points]) -> Iterator[Flag]:
    for name in dict.fromkeys((*plan.targets, *plan.predictors, *plan.covariates)):
        columns = [one.fitted[name].dropna().to_numpy(dtype=float) for one in cells]
        if all(len(column) == 0 or is_constant(column[:, None])[0] for column in columns):
            yield Flag("constant", name, (), f"{name} is the same for all tokenizers: it cannot be correlated")


def _duplicated(plan: AnalysisPlan, cells: Sequence[Points]) -> Iterator[Flag]:
    """Yield tokenizers that agree in all predictors and targets: probably one under two names."""
    rows = cells[0].all[[*dict.fromkeys((*plan.predictors, *plan.targets))]].dropna()
    doubles = rows[rows.duplicated(keep=False)]
    for _, same in doubles.groupby(list(doubles), sort=False):
        names = tuple(map(str, same.index))
        yield Flag(
            "duplicated", "", names, f"the same values in all columns, so counted more than once: {listed(names)}"
        )


def _sample_sizes(cells: Sequence[Points]) -> Iterator[Flag]:
    for text in dict.fromkeys(one.sizes for one in cells if one.sizes):
        advice = "distances of distributions depend on it, compare at equal numbers"
        yield Flag("sample sizes", text.split()[0], (), f"{text}: {advice}")


def _dependent(plan: AnalysisPlan, cells: Sequence[Points]) -> Iterator[Flag]:
    for target in plan.targets:
        names = tuple(dict.fromkeys(name for one in cells for name in dependent_tokenizers(plan, target, one.all)))
        if names:
            text = f"{target}: without {listed(names)}, which learned from the features that judge them"
            yield Flag("dependent judge", target, names, text)
