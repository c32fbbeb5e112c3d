"""An analysis for reading: tables for the terminal, and all correlations as CSV."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, TextIO

import pandas as pd

from latentlab.files import write_text
from latentlab.study.analysis.reaction_words import agrees, by_predictor, in_words
from latentlab.study.analysis.regressions import HELD_OUT, LEAVE_ONE, leave_group, of_most_points

if TYPE_CHECKING:
    from rich.table import Table

CSV_FILE = "correlations.csv"

_PLAIN_WIDTH = 220
_SYMBOLS = {"pearson": "r", "spearman": "rho", "kendall": "tau"}

Record = Mapping[str, Any]


def write_csv(analysis: Record, path: Path) -> None:
    """Write every correlation as a line; lists are joined by "; "."""
    rows = pd.DataFrame(analysis["correlations"])
    for name in ("covariates", "warnings"):
        rows[name] = ["; ".join(values) for values in rows[name]]
    write_text(path, rows.to_csv(index=False))


def print_analysis(analysis: Record, file: TextIO | None = None) -> None:
    """Print the primary question, correlations by target and setting, predictions, noise, reactions, and what to beware of."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    file = file or sys.stdout
    console = Console(file=file, width=None if file.isatty() else _PLAIN_WIDTH, highlight=False, markup=False)
    if analysis["primary"]:
        console.print(_primary(analysis["primary"]))
    for heading, records in _by_cell(analysis["correlations"]):
        table = Table(title=heading, title_justify="left", caption=_letters_told(records), caption_justify="left")
        for number, column in enumerate(_head(analysis, records)):
            table.add_column(
                column, justify="right" if number > 1 else "left", no_wrap=column != "remarks", overflow="fold"
            )
        for row in _rows(analysis, records):
            table.add_row(*map(Text, row))
        console.print(table)
    found = [*_predictions(analysis), *_noise(analysis), *_reactions(analysis)]
    for line in [*found, legend(analysis), *analysis["warnings"]]:
        console.print(Text(line), soft_wrap=True)


def _primary(records: Sequence[Record]) -> "Table":
    """Return a table with a row per predictor, the strongest first, and a column per set of covariates."""
    from rich.table import Table

    raw = sorted((one for one in records if not one["covariates"]), key=lambda one: -abs(one["value"]))
    given, letters = _covariates(records), _letters(records)
    settings = records[0]["settings"]
    mean = f", mean over {settings} settings" if settings > 1 else ""
    title = f"Primary question: rho with {records[0]['target']}{mean}"
    table = Table(title=title, title_justify="left", caption=_letters_told(records), caption_justify="left")
    headings = (f"given {_lettered(names, letters)}" for names in given)
    for column in ("predictor", "n", "rho", "95 % interval", "p adjusted", *headings):
        table.add_column(column, justify="left" if column == "predictor" else "right", no_wrap=True)
    for main in raw:
        own = {tuple(one["covariates"]): one for one in records if one["predictor"] == main["predictor"]}
        level = [_value(own.get(names)) for names in given]
        value = f"{main['value']:.3f}{' !' if main['agrees'] is False else ''}"
        table.add_row(main["predictor"], str(main["n"]), value, _interval(main), _p(main["p_adjusted"]), *level)
    return table


def legend(analysis: Record) -> str:
    """Return what the columns of the tables are."""
    plan = analysis["plan"]
    return (
        "Intervals: 95 %, BCa bootstrap over tokenizers. "
        f"p: {plan['permutations']:,} permutations (all of up to 8 points); adjusted for the number of predictors "
        f"({plan['multiplicity']}). good: which way a predictor is good; ! where the sign of the correlation contradicts it."
    )


def _by_cell(records: Sequence[Record]) -> Iterator[tuple[str, list[Record]]]:
    for (target, generator, guidance), same in groupby(
        records, key=lambda r: (r["target"], r["generator"], r["guidance"])
    ):
        where = [generator, f"guidance {guidance:g}" if guidance is not None else ""]
        yield ", ".join(filter(None, [target, *where])), list(same)


def _head(analysis: Record, records: Sequence[Record]) -> list[str]:
    first, *others = analysis["plan"]["methods"]
    covariates, letters = _covariates(records) if first != "kendall" else [], _letters(records)
    given = [f"{_SYMBOLS[first]} given {_lettered(names, letters)}" for names in covariates]
    within = [f"{_SYMBOLS[first]} within {group}" for group in _groups(records)] if first != "kendall" else []
    return ["predictor", "good", "n", first, "95 % interval", "p", "p adjusted", *others, *given, *within, "remarks"]


def _rows(analysis: Record, records: Sequence[Record]) -> Iterator[list[str]]:
    """Yield a line per predictor, the strongest first."""
    first, *others = analysis["plan"]["methods"]
    table = {(r["predictor"], r["method"], tuple(r["covariates"]), r["within"]): r for r in records}
    raw = [r for r in records if r["method"] == first and not r["covariates"] and not r["within"]]
    for main in sorted(raw, key=lambda r: -abs(r["value"])):
        name = main["predictor"]
        keys: list[tuple[str, str, tuple[str, ...], str]] = [(name, method, (), "") for method in others]
        if first != "kendall":
            keys += [(name, first, names, "") for names in _covariates(records)]
            keys += [(name, first, (), group) for group in _groups(records)]
        yield [
            name, main["predictor_better"].replace("none", "-"), str(main["n"]),
            f"{main['value']:.3f}{' !' if main['agrees'] is False else ''}", _interval(main), _p(main["p"]),
            _p(main["p_adjusted"]), *(_value(table.get(key)) for key in keys), "; ".join(main["warnings"]),
        ]  # fmt: skip


def _covariates(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Return the sets of covariates."""
    return list(dict.fromkeys(tuple(one["covariates"]) for one in records if one["covariates"]))


def _letters(records: Sequence[Record]) -> dict[str, str]:
    """Return covariate -> letter where there are several: their names would leave no room; empty for a single one."""
    names = list(dict.fromkeys(name for one in records for name in one["covariates"]))
    return dict(zip(names, ascii_lowercase, strict=False)) if 1 < len(names) <= len(ascii_lowercase) else {}


def _lettered(names: Sequence[str], letters: Mapping[str, str]) -> str:
    return "+".join(letters.get(name, name) for name in names)


def _letters_told(records: Sequence[Record]) -> str | None:
    """Return what the letters in the headings mean, if there are any."""
    return ", ".join(f"{letter}: {name}" for name, letter in _letters(records).items()) or None


def _groups(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(r["within"] for r in records if r["within"]))


def _value(record: Record | None) -> str:
    return "-" if record is None else f"{record['value']:.3f}"


def _interval(record: Record) -> str:
    return "-" if record["low"] is None else f"{record['low']:.3f} .. {record['high']:.3f}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.001 else f"{value:.1e}"


def _predictions(analysis: Record) -> Iterator[str]:
    """Yield the best prediction of each target, setting and scheme.

    Of tokenizers kept from everything that of the model which is best at the left-out ones: chosen by its own score it would be
    too good.
    """

    def setting(record: Record) -> tuple[Any, ...]:
        return record["target"], record["generator"], record["guidance"] or 0.0

    known = [one for one in analysis["prediction"] if one["r2"] is not None]
    for (target, generator, guidance), same in groupby(sorted(known, key=setting), key=setting):
        schemes = {name: list(some) for name, some in groupby(sorted(same, key=_scheme), key=_scheme)}
        best = {name: max(of_most_points(models), key=lambda one: one["r2"]) for name, models in schemes.items()}
        by_group = [name for name in map(leave_group, analysis["plan"]["groups"]) if name in best]
        judge = best.get(by_group[0] if by_group else LEAVE_ONE)
        if HELD_OUT in best and judge is not None:
            by_judge = [one for one in schemes[HELD_OUT] if one["predictors"] == judge["predictors"]]
            best[HELD_OUT] = by_judge[0] if by_judge else best[HELD_OUT]
        for name, one in sorted(best.items(), key=lambda item: item[0] == HELD_OUT):
            where = f"{generator} {guidance:g}, " if generator else ""
            which = "the same model's" if name == HELD_OUT else f"best of {len(schemes[name])}"
            yield (
                f"{which} predictions of {target} ({where}{name.replace('_', ' ')}): {' + '.join(one['predictors'])}, "
                f"R^2 {one['r2']:.3f}, rmse {one['rmse']:.4g}, n {one['n']}"
            )


def _scheme(record: Record) -> str:
    return str(record["scheme"])


def _noise(analysis: Record) -> Iterator[str]:
    for one in analysis["noise"]:
        where = f" ({one['generator']} {one['guidance']:g})" if one["guidance"] is not None else ""
        yield (
            f"noise of {one['target']}{where}: within {one['within_sd']:.4g}, between {one['between_sd']:.4g}; "
            f"a perfect predictor would reach {one['ceiling']:.3f}"
        )


def _reactions(analysis: Record) -> Iterator[str]:
    """Yield a line per measurement that does not always react as quality does, and one of those that do."""
    found = by_predictor(analysis["reactions"])
    agreeing = [name for name, records in found.items() if all(map(agrees, records))]
    for name in found:
        if name not in agreeing:
            yield f"{name}: {in_words(found[name])}"
    if found:
        which = f": {', '.join(agreeing)}" if agreeing else ""
        yield (
            f"{len(agreeing)} of {len(found)} measurements agree with quality in every comparison with a base or baseline{which}"
        )
