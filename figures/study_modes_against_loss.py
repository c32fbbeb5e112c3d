"""Modes of the latents against the generator's loss: mixture likelihood over components, and its best against the loss."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.nll_over_components import component_axis, shared_dims
from figures.study_layout import axis_label, cell_words, cluster_legend
from figures.study_points import curve, facts, scatter, spread
from figures.style import heading, require, themed, title
from latentlab.errors import UserError
from latentlab.study.table import StudyTable


@themed
def draw(
    table: StudyTable, mixtures: Mapping[str, Details], generator: str, guidance: float, loss: str = "held_out_loss"
) -> Figure:
    """Draw held-out NLL over K, a curve per tokenizer, and beside it the generator's loss over the lowest NLL.

    Args:
        table: the study.
        mixtures: tokenizer -> details of ``gmm``: ``components``, ``heldout_nll``, [K], and ``dims``.
        generator: whose loss.
        guidance: a scale at which the generator has rows.
        loss: column of the loss on held-out latents.

    Raises:
        UserError: no mixture of a tokenizer of the table, no loss, or mixtures in different dimensions.
    """
    shown = {name: details for name, details in mixtures.items() if name in facts(table)}
    require(shown, "tokenizer with Gaussian mixtures")
    losses = spread(table, loss, generator, guidance)
    if losses.empty:
        raise UserError(f"no tokenizer has {loss} for {cell_words(generator, guidance)}")
    figure = Figure(figsize=(11.4, 4.9), layout="constrained")
    curves, points = figure.subplots(1, 2)
    best = {}
    for name, details in shown.items():
        k, nll = columns(details, "components", "heldout_nll")
        curves.plot(k, nll, **curve(table, name))
        best[name] = float(np.nanmin(nll))
    component_axis(curves, np.concatenate([columns(details, "components")[0] for details in shown.values()]))
    unit = f"(nats per image, {shared_dims(shown)} dimensions)"
    curves.set_ylabel(f"held-out NLL {unit}")
    heading(curves, "Gaussian mixtures", hint="lower, and reached with fewer components, is easier")
    lowest = pd.Series(best)
    scatter(points, table, pd.DataFrame({"value": lowest, "low": lowest, "high": lowest}), losses)
    points.set_xlabel(f"lowest held-out NLL {unit}")
    points.set_ylabel(axis_label(table, loss), parse_math=False)
    heading(points, "Against the generator's loss", hint=cell_words(generator, guidance))
    title(figure, "Modes of the latents and diffusion loss")
    cluster_legend(figure, table)
    return figure
