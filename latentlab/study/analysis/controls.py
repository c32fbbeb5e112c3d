"""What controls did: every column of a transformed tokenizer beside that of the tokenizer it was made of."""

from collections.abc import Iterator, Sequence

import pandas as pd

from latentlab.study.analysis.correlations import Record
from latentlab.study.analysis.points import Points, averaged, rows_of
from latentlab.study.table import Role, StudyTable

_OF_THE_TOKENIZER: tuple[Role, ...] = ("measurement", "reconstruction", "decoder")
_OF_THE_GENERATOR: tuple[Role, ...] = ("quality", "trajectory")


def control_records(table: StudyTable, cells: Sequence[Points], warnings: list[str]) -> Iterator[Record]:
    """Yield a record per control and column; columns that no generator touches have neither generator nor guidance.

    Args:
        table: the study.
        cells: its settings; bases may be held out.
        warnings: takes a line per control whose base is not there.
    """
    told: set[tuple[str, str]] = set()
    for cell in cells:
        bases = dict(cell.all.iterrows())
        changed = averaged(rows_of(table, cell.setting, controls=True))
        for label, row in changed.iterrows():
            base = str(row["control_of"])
            if base not in bases:
                warnings.append(f"control {label}: no row of its base '{base}' with {cell.setting}")
                continue
            names = table.names(*_OF_THE_GENERATOR)
            yield from _compared(table, str(label), row, bases[base], names, cell.setting.facts())
            if (label, base) not in told:
                told.add((str(label), base))
                names = table.names(*_OF_THE_TOKENIZER)
                facts = {"generator": "", "guidance": None}
                yield from _compared(table, str(label), row, bases[base], names, facts)


def _compared(
    table: StudyTable, label: str, changed: pd.Series, base: pd.Series, names: Sequence[str], facts: Record
) -> Iterator[Record]:
    for name in names:
        before, after = base[name], changed[name]
        if pd.isna(before) or pd.isna(after):
            continue
        column = table.column(name)
        yield {
            "tokenizer": label, "control": str(changed["control"]), "of": str(changed["control_of"]), **facts, "name": name,
            "role": column.role, "better": column.better, "base": float(before), "changed": float(after),
            "relative": float(after / before - 1) if before else None,
        }  # fmt: skip
