"""What happens to the norm of token embeddings during training: as the network sees them, and as they are stored."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from figures.columns import Details, columns
from figures.style import GREY, fit, legend, look, require, themed

_PANELS = {"latent_norm": "mean norm as the network sees it", "raw_norm": "mean norm as stored"}


@themed
def draw(runs: Mapping[str, Details], radius: float | None = None) -> Figure:
    """Draw two panels beside each other on one logarithmic axis, one curve per run.

    Args:
        runs: name -> ``step``, ``latent_norm`` and ``raw_norm`` [m], positive norms.
        radius: norm on the product of spheres, for a grey line in the first panel.

    Raises:
        UserError: no run, or a column is missing or has another length.
    """
    require(runs, "run")
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for index, (name, details) in enumerate(runs.items()):
        steps, *norms = columns(details, "step", *_PANELS)
        for axes, values in zip(panels, norms, strict=True):
            label = name if len(runs) > 1 else None
            axes.plot(steps, values, label=label, marker="o" if len(steps) == 1 else None, **look(index))
    for axes, title in zip(panels, _PANELS.values(), strict=True):
        axes.set(yscale="log", xlabel="training step", ylabel=title)
    title = "Norms over training" + (f": {fit(next(iter(runs)))}" if len(runs) == 1 else "")
    if radius is not None:
        panels[0].axhline(radius, color=GREY, linewidth=1, zorder=1)
        title += f"\ngrey line: {radius:.3g}, the norm on the product of spheres"
    figure.suptitle(title, x=0.01, ha="left", size=12, parse_math=False)
    legend(figure, panels[0].get_lines())
    return figure
