"""How classes lie in a latent space: 2-D points coloured by class. A picture, not a score."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import MARKERS, colour, heading, legend, panel, themed
from latentlab.errors import UserError

MOST_NAMED = 20
"""More classes than this cannot be told apart by colour and shape, so they get no legend."""


@themed
def draw(
    points: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] | None = None, *, name: str = ""
) -> Figure:
    """Draw points by class, with the class names right of the panel.

    Args:
        points: [n,2], for example from `analyses.embedding.umap_points`.
        labels: int [n], or None for one colour.
        class_names: names by label; without them the label numbers are the names.
        name: tokenizer, for the title.

    Raises:
        UserError: shapes do not fit.
    """
    points = np.asarray(points, dtype=np.float64)
    check(points, labels)
    figure, axes = panel(width=7.6, height=5.4)
    classes = np.zeros(len(points), dtype=int) if labels is None else np.asarray(labels)
    shown = np.unique(classes)
    for index, label in enumerate(shown):
        scatter_class(axes, points[classes == label], index, class_name(int(label), class_names))
    many = len(shown) > MOST_NAMED
    if labels is not None and not many:
        legend(figure, axes.get_lines(), markerscale=2.2, handletextpad=0.2)
    axes.grid(False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    about = "coloured by class" if labels is not None else "no labels"
    if many:
        about = f"{len(shown)} classes, too many to name: colours repeat"
    heading(axes, "UMAP of the latents", [name] if name else [], f"{about}; distances between groups mean little")
    return figure


def check(points: np.ndarray, labels: np.ndarray | None) -> None:
    """Raise `UserError` where the points are not in a plane or have other labels."""
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise UserError(f"points must be [n,2], got shape {list(points.shape)}")
    if labels is not None and len(labels) != len(points):
        raise UserError(f"labels must have one entry per point: got {len(labels)} for {len(points)} points")


def scatter_class(axes: Axes, points: np.ndarray, index: int, name: str, size: float = 3.2) -> None:
    """Draw the points [m,2] of the ``index``-th class; ``size`` of a marker in points."""
    axes.plot(
        *points.T,
        linestyle="none",
        marker=MARKERS[index % len(MARKERS)],
        color=colour(index),
        markersize=size,
        markeredgewidth=0,
        alpha=0.75,
        label=name,
    )


def class_name(label: int, class_names: Sequence[str] | None) -> str:
    """Return the name of a class, or its number where it has none."""
    return class_names[label] if class_names is not None and 0 <= label < len(class_names) else str(label)
