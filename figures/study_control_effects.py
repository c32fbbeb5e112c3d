"""What controls with a known answer did: how far each moved quality and every measurement, in spreads between tokenizers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from figures.study_correlation_map import SIGNED
from figures.study_layout import cell_words, short
from figures.study_points import at, facts, measured, spread_of
from figures.style import fit, themed, title
from latentlab.errors import UserError
from latentlab.study.table import StudyTable, with_original

_FULL = 3.0  # standard deviations at which the colours end


@themed
def draw(
    table: StudyTable, targets: Sequence[str], predictors: Sequence[str], generator: str, guidance: float
) -> Figure:
    """Draw a map: one row per control, one column per quality and, right of a line, per measurement.

    A measurement does well where its column repeats the colours of quality.

    Args:
        table: the study.
        targets: columns left of the line.
        predictors: columns right of it.
        generator: whose samples.
        guidance: their guidance scale.

    Raises:
        UserError: there is no control whose original was measured as well.
    """
    left, right = (measured(table, names, generator, guidance) for names in (targets, predictors))
    effects, inside = control_effects(table, [*left, *right], generator, guidance)
    if not np.isfinite(effects.to_numpy()).any():
        raise UserError("no control was measured together with its original and two tokenizers that are no controls")
    effects = effects.dropna(axis=1, how="all")  # codes, say, that the originals do not have
    inside, left = inside[effects.columns], [name for name in left if name in effects]
    texts = effects.map(lambda value: _signed(value))
    texts = texts.where(~inside, "(" + texts + ")")
    figure = Figure(figsize=(4.6 + 0.6 * max(effects.shape[1], 6), 2.7 + 0.34 * len(effects)), layout="constrained")
    axes = figure.subplots()
    seaborn.heatmap(
        effects, annot=texts, fmt="", vmin=-_FULL, vmax=_FULL, cmap=SIGNED, ax=axes, linewidths=1, annot_kws={"size": 9},
        cbar_kws={"label": "change / SD between tokenizers", "extend": "both", "pad": 0.02},
    )  # fmt: skip
    axes.axvline(len(left), color="black", linewidth=2)
    axes.set(xlabel="", ylabel="")
    names = [short(name) + ("*" if table.column(name).better == "none" else "") for name in effects.columns]
    axes.set_xticks(
        np.arange(len(names)) + 0.5, [fit(name, 26) for name in names], rotation=40, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(np.arange(len(effects)) + 0.5, [fit(str(name), 36) for name in effects.index], rotation=0)
    axes.tick_params(length=0, labelsize=9.5)
    note = "positive: better or easier than the original (*: just higher); in brackets: intervals overlap"
    title(figure, f"What controls changed: {cell_words(generator, guidance)}", note)
    return figure


def _signed(value: float) -> str:
    """Return ``+1.2``; ``0.0`` for what rounds to it; nothing for NaN."""
    text = f"{value:+.1f}".replace("-", "−")
    return "" if not np.isfinite(value) else "0.0" if abs(value) < 0.05 else text


def control_effects(
    table: StudyTable, columns: Sequence[str], generator: str, guidance: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return, by control and column, the change against its original and whether their intervals overlap.

    The unit is the standard deviation of the column over tokenizers that are no controls; the sign is turned so that positive
    is better (or easier); columns without a better side keep theirs.
    """
    who = facts(table)
    controls = [name for name, one in who.items() if one.control and one.control_of in who]
    rows = at(table, generator, guidance)
    plain = rows[~rows["tokenizer"].isin([name for name, one in who.items() if one.control])]
    pairs = {name: with_original(rows, name) for name in controls}
    effects = pd.DataFrame(np.nan, index=controls, columns=list(columns))
    inside = pd.DataFrame(False, index=controls, columns=list(columns))
    for column in columns:
        deviation = spread_of(plain, column)["value"].std()
        sign = -1.0 if table.column(column).better == "lower" else 1.0
        for name, both in pairs.items():
            found = [spread_of(same, column) for same in both]
            if all(map(len, found)) and deviation > 0:
                own, base = (one.iloc[0] for one in found)
                effects.loc[name, column] = sign * (own["value"] - base["value"]) / deviation
                inside.loc[name, column] = own["low"] <= base["high"] and base["low"] <= own["high"]
    return effects, inside
