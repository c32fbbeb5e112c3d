"""The comparison as a run: every subject analysed, GMMs brought to one dimension, table and figures written."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from latentlab.analyze import Inputs, Options, Subject, analyze, measure_all
from latentlab.compare import Comparison, compare
from latentlab.compare_report import write_comparison
from latentlab.encoding import unique_slug
from latentlab.errors import UserError
from latentlab.finished import FinishedSteps
from latentlab.measurement import Measurement
from latentlab.runtime import make_writable, say


def compare_subjects(
    subjects: Mapping[str, Subject],
    out: Path,
    *,
    title: str,
    metrics: Sequence[str] | None = None,
    options: Options | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    command: str | None = None,
) -> Comparison:
    """Analyse every subject into ``out/NAME`` and write ``comparison.json``, ``comparison.csv``, ``summary.md`` and ``figures/``.

    Args:
        subjects: name -> what is analysed; at least two.
        out: run directory; what an earlier run there measured of the same input is taken over.
        title: of table and figures.
        metrics: names of measurements, None for all.
        options: parameters of the measurements that differ from their defaults.
        seed: of everything random; the same for all, so that bootstraps are paired.
        device: given to measurements that can use it.
        command: the command line, for the record.

    Raises:
        UserError: fewer than two subjects, unknown measurement, non-finite latents, or ``out`` cannot be written.
    """
    if len(subjects) < 2:
        raise UserError("a comparison needs at least two tokenizers")
    make_writable(out)
    measured: dict[str, list[Measurement]] = {}
    for name, subject in subjects.items():
        say(f"{name}:")
        folder = out / unique_slug(name)
        results = analyze(
            subject, folder, metrics=metrics, options=options, seed=seed, device=device, command=command, draw=False
        )
        measured[name] = list(results.measurements)
    if not (options or {}).get("gmm", {}).get("dims"):
        measured = _gmms_of_one_dimension(subjects, measured, out, options or {}, seed, str(device))
    comparison = compare(measured, paired=same_images(list(subjects.values())))
    write_comparison(comparison, title, out, _figures(comparison, out))
    return comparison


def same_images(subjects: Sequence[Subject]) -> bool:
    """Whether all subjects are latents of the same images in the same order, as far as can be told.

    Of images at hand the fingerprint tells; of latents alone their number and labels.
    """
    first = subjects[0]
    for other in subjects[1:]:
        if first.images is not None and other.images is not None:
            same = first.images.fingerprint == other.images.fingerprint
        else:
            mine, theirs = first.latents.labels, other.latents.labels
            same = mine is not None and theirs is not None and np.array_equal(mine, theirs)
        if not same:
            return False
    return True


def _gmms_of_one_dimension(
    subjects: Mapping[str, Subject],
    measured: Mapping[str, list[Measurement]],
    out: Path,
    options: Options,
    seed: int,
    device: str,
) -> dict[str, list[Measurement]]:
    """Measure ``gmm`` again in the largest PCA dimension that any tokenizer needs: likelihoods compare in one only (MAETok)."""
    dims = {name: m.details["dims"] for name, ms in measured.items() for m in ms if m.name == "gmm"}
    shared = max(dims.values(), default=0)
    found = {}
    for name, measurements in measured.items():
        if dims.get(name, shared) != shared:
            settings = {**options, "gmm": {**options.get("gmm", {}), "dims": shared}}
            inputs = Inputs(subjects[name].latents, seed, device, options=settings)
            again = measure_all(inputs, ["gmm"], FinishedSteps(out / unique_slug(name) / "measurements" / "same-dims"))
            for reason in again.refused.values():
                say(f"gmm of {name} in {shared} dimensions: {reason}")
            measurements = [
                again.measurements[0] if m.name == "gmm" and again.measurements else m for m in measurements
            ]
        found[name] = measurements
    return found


def _figures(comparison: Comparison, out: Path) -> list[str]:
    """Draw the figures of all tokenizers together; one that cannot be drawn leaves a line, not an error."""
    from figures import measurement_forest, parallel_coordinates
    from figures.analysis import draw_all
    from figures.style import save

    comparable = {
        name: {metric: m for metric, m in measured.items() if metric not in comparison.refused}
        for name, measured in comparison.measurements.items()
    }
    plans = {
        "parallel_coordinates": lambda: save(
            parallel_coordinates.draw(comparable), out / "figures/parallel_coordinates"
        ),
        "measurements": lambda: save(measurement_forest.draw(comparable), out / "figures/measurements"),
        "overlays": lambda: draw_all(comparison.measurements, out / "figures"),
    }
    files: list[str] = []
    for name, draw in plans.items():
        try:
            files += [file.relative_to(out).as_posix() for file in draw()]
        except Exception as error:  # any: a plotting library must not cost the comparison
            say(f"figure {name}: not drawn: {' '.join(str(error).split()) or type(error).__name__}")
    return files
