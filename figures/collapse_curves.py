"""The bottleneck-collapse study over training: perceptual distances of each tokenizer, setting by setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import GREY, colour, legend, look, require, themed

_ROWS = (
    ("fitted", "to_reconstruction", "fitted views, to own\nreconstruction (dotted:\nanother view)", "other_view"),
    (
        "heldout_views",
        "to_reconstruction",
        "held-out views, to own\nreconstruction (dotted:\nanother view)",
        "other_view",
    ),
    ("fitted", "to_view", "fitted views, to the\nview (dotted: tokenizer\nalone)", "tokenizer_fitted"),
)
"""Set of views, kind of distance, axis label, and the reference that is drawn as a dotted line."""


@themed
def draw(runs: Sequence[Mapping[str, Any]], perceptual: str = "perceptual distance") -> Figure:
    """Draw the median over runs as a line; one column per tokenizer, one colour per setting. The first has its range as a band.

    Args:
        runs: records of a study's ``results.json``.
        perceptual: name of the perceptual distance.

    Raises:
        UserError: no run.
    """
    require(runs, "run")
    paths = list(dict.fromkeys(run["path"] for run in runs))
    settings = list(dict.fromkeys(run["setting"] for run in runs))
    figure = Figure(figsize=(1.6 + 3.9 * len(paths) + 2.0, 8.2), layout="constrained")
    grid = figure.subplots(len(_ROWS), len(paths), squeeze=False, sharex=True, sharey="row")
    for row, (which, kind, label, reference) in zip(grid, _ROWS, strict=True):
        for axes, path in zip(row, paths, strict=True):
            own = [run for run in runs if run["path"] == path]
            for index, setting in enumerate(settings):
                _curve(axes, [run for run in own if run["setting"] == setting], which, kind, setting, index)
            _reference(axes, own, reference)
        row[0].set_ylabel(label)
        row[0].set_ylim(bottom=0)  # last: it also ends the search for the top
    for axes, path in zip(grid[0], paths, strict=True):
        name = next(run["tokenizer"] for run in runs if run["path"] == path)
        axes.set_title(f"{path}: {name}", parse_math=False)
    for axes in grid[-1]:
        axes.set_xlabel("iterations")
    units = len({(run["subject"], run["seed"]) for run in runs})
    spread = f"median of {units} runs per curve; band: range at {settings[0]}" if units > 1 else "one run per curve"
    figure.suptitle(f"Through a bottleneck: {perceptual}\n{spread}", weight="bold", size=12, parse_math=False)
    legend(figure, grid[0, 0].get_lines())
    return figure


def _curve(axes: Axes, runs: Sequence[Mapping[str, Any]], which: str, kind: str, label: str, index: int) -> None:
    """Draw one setting; runs of different lengths (an unfinished study) are cut to the shortest."""
    if not runs:
        return
    length = min(len(run["iterations"]) for run in runs)
    values = np.array([run["curves"][which][kind][:length] for run in runs], dtype=np.float64)
    iterations = runs[0]["iterations"][:length]
    axes.plot(iterations, np.median(values, axis=0), label=label, **look(index))
    if len(runs) > 1 and index == 0:
        axes.fill_between(iterations, values.min(0), values.max(0), color=colour(index), alpha=0.2, linewidth=0)


def _reference(axes: Axes, runs: Sequence[Mapping[str, Any]], name: str) -> None:
    """Draw what to compare with."""
    height = float(np.median([run["references"][name] for run in runs]))
    axes.axhline(height, color=GREY, linestyle=(0, (1, 2)), linewidth=1.4)
