"""The figures of one analysis. They matter less than the numbers: one that cannot be drawn leaves a note, not an error.

Plotting libraries are imported when the numbers are safe: they take seconds to load and may be broken.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

from latentlab import __version__
from latentlab.data.base import ImageSet
from latentlab.data.subset import choose_subset
from latentlab.errors import UserError
from latentlab.files import digest, read_json
from latentlab.finished import FinishedSteps
from latentlab.latents import Latents
from latentlab.results import Results
from latentlab.runtime import progress, say
from latentlab.tokenizers.base import Tokenizer

UMAP_POINTS = 3000
"""More points make the picture slower to compute, not clearer."""

SHOWN_IMAGES = 10


def draw_figures(
    results: Results, out: Path, *, latents: Latents, images: ImageSet | None = None, tokenizer: Tokenizer | None = None
) -> tuple[list[str], list[str]]:
    """Draw what can be drawn into ``out/figures``.

    Returns:
        Files relative to ``out``, and a note about each figure that could not be drawn.
    """
    folder = out / "figures"
    plans: dict[str, Callable[[], Iterable[Path]]] = {
        "measurements": lambda: _measurements(folder, results),
        "umap": lambda: _umap(latents, folder, results),
    }
    if images is not None and tokenizer is not None:
        plans["reconstructions"] = lambda: _reconstructions(latents, images, tokenizer, folder, results)
    files, notes = [], []
    with progress("drawing", len(plans)) as advance:
        for name, draw in plans.items():
            try:
                files += [file.relative_to(out).as_posix() for file in draw()]
            except Exception as error:  # any: a plotting library must not cost the measurements
                notes.append(f"figure {name}: not drawn: {' '.join(str(error).split()) or type(error).__name__}")
                say(notes[-1])
            advance(1)
    return files, notes


def remove_figures(out: Path) -> None:
    """Remove the figures that an earlier analysis in ``out`` lists: those not drawn again would show another input."""
    try:
        listed = read_json(out / "results.json")["figures"]
    except (UserError, KeyError, TypeError):  # no earlier analysis
        return
    for name in listed:
        (out / "figures" / Path(name).name).unlink(missing_ok=True)


def _measurements(folder: Path, results: Results) -> list[Path]:
    """Draw the figures that belong to single measurements."""
    from figures.analysis import draw_all

    return draw_all({results.title: {m.name: m for m in results.measurements}}, folder)


def _umap(latents: Latents, folder: Path, results: Results) -> tuple[Path, ...]:
    """Draw the latents in the plane, with the points of an earlier run where they still hold."""
    from analyses.embedding import umap_points
    from figures import umap_classes
    from figures.style import save

    steps = FinishedSteps(folder)
    key = digest([latents.fingerprint, UMAP_POINTS, results.seed, __version__, results.environment["versions"]])
    kept = steps.get("umap_points", key)
    if kept is None:
        points, labels = umap_points(latents, n=UMAP_POINTS, seed=results.seed)
        kept = {"points": points.tolist(), "labels": None if labels is None else labels.tolist()}
        steps.put("umap_points", key, kept)
    labels = None if kept["labels"] is None else np.array(kept["labels"])
    figure = umap_classes.draw(np.array(kept["points"]), labels, latents.class_names, name=results.title)
    return save(figure, folder / "umap")


@torch.inference_mode()
def _reconstructions(
    latents: Latents, images: ImageSet, tokenizer: Tokenizer, folder: Path, results: Results
) -> tuple[Path, ...]:
    """Draw a few images, of different classes where there are any, beside what is decoded from their stored latents."""
    from figures import reconstructions
    from figures.style import save

    chosen = choose_subset(images.n, images.labels, SHOWN_IMAGES, results.seed)
    if images.labels is not None:
        chosen = chosen[np.argsort(images.labels[chosen], kind="stable")]
    stored = latents.take(chosen).to(results.device)
    decoded = tokenizer.to(results.device).eval().decode(stored if latents.grid else stored.transpose(1, 2))
    names = None
    if images.labels is not None and images.class_names is not None:
        names = [images.class_names[label] for label in images.labels[chosen]]
    figure = reconstructions.draw(images.images(chosen), decoded.float(), names, name=results.title)
    return save(figure, folder / "reconstructions")
