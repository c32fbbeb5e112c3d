"""How classes lie in several latent spaces: a map per tokenizer, the same classes in the same colours. A picture, not a score."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from figures.columns import Details, column
from figures.study_layout import grid
from figures.style import fit, heading, legend, require, themed, title
from figures.umap_classes import MOST_NAMED, check, class_name, scatter_class


@themed
def draw(
    maps: Mapping[str, Details],
    notes: Mapping[str, str] | None = None,
    class_names: Sequence[str] = (),
    about: str = "",
) -> Figure:
    """Draw one panel per tokenizer, its points coloured by class.

    Args:
        maps: tokenizer -> ``points`` [n,2], for example of UMAP, and ``labels`` int [n].
        notes: tokenizer -> a line above its panel, such as its quality.
        class_names: names by label; without them the label numbers are the names.
        about: which tokenizers, for the title.

    Raises:
        UserError: no map, or shapes do not fit.
    """
    require(maps, "map")
    figure, panels = grid(len(maps), least=2)
    tables = {name: (column(one, "points", ndim=2), column(one, "labels")) for name, one in maps.items()}
    classes = sorted({int(label) for _, labels in tables.values() for label in np.unique(labels[np.isfinite(labels)])})
    for axes, (name, (points, labels)) in zip(panels, tables.items(), strict=True):
        check(points, labels)
        for index, label in enumerate(classes):
            scatter_class(axes, points[labels == label], index, class_name(label, class_names or None), size=2.2)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.set_aspect("equal", adjustable="datalim")
        heading(axes, fit(name, 28), hint=(notes or {}).get(name, ""))
    title(
        figure,
        ": ".join(filter(None, ["UMAP of the latents by class", about])),
        "axes have no unit; distances between groups mean little",
    )
    if len(classes) <= MOST_NAMED:
        legend(figure, panels[0].get_lines(), markerscale=3.2, handletextpad=0.2)
    return figure
