"""What controls did: every column of a transformed tokenizer beside that of the training it was made of."""

from collections.abc import Iterator, Sequence

import pandas as pd

from latentlab.study.analysis.correlations import Record
from latentlab.study.analysis.points import Points, averaged, rows_of
from latentlab.study.table import Role, StudyTable, with_original

_OF_THE_TOKENIZER: tuple[Role, ...] = ("measurement", "reconstruction", "decoder")
_OF_THE_GENERATOR: tuple[Role, ...] = ("quality", "trajectory")


def control_records(table: StudyTable, cells: Sequence[Points], warnings: list[str]) -> Iterator[Record]:
    """Yield a record per control and column; columns that no generator touches have neither generator nor guidance.

    Args:
        table: the study.
        cells: its settings.
        warnings: takes a line per control whose base is not there with the same seeds.
    """
    told: set[str] = set()
    for cell in cells:
        rows = pd.concat([rows_of(table, cell.setting, controls=which) for which in (False, True)])
        for label, base in rows.loc[rows["control"] != "", ["tokenizer", "control_of"]].drop_duplicates().to_numpy(str):
            changed, original = (averaged(same) for same in with_original(rows, label))
            if original.empty:
                warnings.append(f"control {label}: no row of its base '{base}' with {cell.setting} and the same seeds")
                continue
            both = label, changed.loc[label], original.loc[base]
            yield from _compared(table, *both, table.names(*_OF_THE_GENERATOR), cell.setting.facts())
            if label not in told:
                told.add(label)
                yield from _compared(table, *both, table.names(*_OF_THE_TOKENIZER), {"generator": "", "guidance": None})


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
