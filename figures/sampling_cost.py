"""What an image costs against how good it is: one point per generator and guidance scale."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from figures.learning_curves import log_axis
from figures.style import MARKERS, colour, legend, require, themed


@themed
def draw(rows: Sequence[Mapping[str, Any]], quality: str) -> Figure:
    """Draw quality over seconds per image and over evaluations of the network; points of a generator are joined.

    Args:
        rows: ``label`` of the generator, guidance ``scale``, ``seconds`` of an image, ``evaluations`` and ``distance``.
        quality: what the distance is; lower is better.

    Raises:
        UserError: no row.
    """
    require(rows, "generator")
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = list(dict.fromkeys(row["label"] for row in rows))
    for axes, key, name in zip(
        panels,
        ("seconds", "evaluations"),
        ("seconds per image, one at a time", "network evaluations per image"),
        strict=True,
    ):
        for index, label in enumerate(labels):
            own = [row for row in rows if row["label"] == label]
            at, values = [row[key] for row in own], [row["distance"] for row in own]
            axes.plot(at, values, color=colour(index), linewidth=1, label=label, marker=MARKERS[index % len(MARKERS)])
            for row in own:
                axes.annotate(
                    f"w={row['scale']:g}", (row[key], row["distance"]), (5, 4), textcoords="offset points", size=8
                )
        axes.set_xlabel(name)
        log_axis(axes, "x")
    log_axis(panels[0], "y")
    panels[0].set_ylabel(f"{quality}\nlower is better", parse_math=False)
    figure.suptitle("Quality against the cost of an image", x=0.01, ha="left", weight="bold", size=12)
    legend(figure, panels[0].get_lines())
    return figure
