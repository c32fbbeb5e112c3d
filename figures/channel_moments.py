"""What the channels of the latents are like: mean, standard deviation and excess kurtosis of each."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from figures.columns import Details, columns
from figures.style import GREY, MARKERS, colour, heading, legend, require, themed

_PANELS = {"mean": "mean", "std": "standard deviation", "excess_kurtosis": "excess kurtosis"}
_REFERENCES = {"mean": 0, "std": 1, "excess_kurtosis": 0}
"""Of a standard Gaussian, which the generator starts from."""


@themed
def draw(tokenizers: Mapping[str, Details]) -> Figure:
    """Draw three panels one under the other, one mark per channel and tokenizer; a grey line is a standard Gaussian.

    Args:
        tokenizers: name -> details of ``latent_statistics``: ``mean``, ``std`` and ``excess_kurtosis`` [c].

    Raises:
        UserError: no tokenizer, or a column is missing or has another length.
    """
    require(tokenizers, "tokenizer")
    figure = Figure(figsize=(7.0, 7.2), layout="constrained")
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for index, (name, details) in enumerate(tokenizers.items()):
        label = name if len(tokenizers) > 1 else None
        for axes, values in zip(panels, columns(details, *_PANELS), strict=True):
            channels = np.arange(len(values)) + _offset(index, len(tokenizers))
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(channels, values, marker, color=colour(index), markersize=_size(len(values)), label=label)
    for axes, (key, title) in zip(panels, _PANELS.items(), strict=True):
        axes.axhline(_REFERENCES[key], color=GREY, linewidth=1, zorder=1)
        axes.set_ylabel(title)
        axes.margins(y=0.15)
    panels[1].set_ylim(bottom=0)
    panels[-1].set_xlabel("channel")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    heading(panels[0], "Moments of the channels", tokenizers, "grey line: standard Gaussian")
    legend(figure, panels[0].get_lines())
    return figure


def _offset(index: int, count: int) -> float:
    """Return how far the marks of a tokenizer stand beside the channel's number, so that none covers another."""
    return 0.5 * ((index + 0.5) / count - 0.5)


def _size(channels: int) -> float:
    return 6.5 if channels <= 64 else 3.0
