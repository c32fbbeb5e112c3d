"""How straight the sampling paths of a trained generator are, and whether its steps are short where the velocity is ambiguous.

Zhong et al., "Diffusing in the Right Space" (arXiv 2606.03578), eq. 10, 11 and figure 10. Paths are walked batch after batch and
measured while they are walked: three states are in memory, and of every path the lengths of its steps. `mind.paths` says in
which frame states are.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.straightness import Paths, TrajectoryMeter, join_paths, summarise
from analyses.viv import viv
from latentlab import __version__
from latentlab.errors import UserError
from latentlab.files import digest, write_json, write_text
from latentlab.finished import FinishedSteps
from latentlab.latents import Latents
from latentlab.measurement import Estimate, Measurement
from latentlab.results import environment
from latentlab.runtime import make_writable, progress
from latentlab.trajectory_report import TRAJECTORIES_SCHEMA_VERSION, summary_lines
from mind.labels import class_labels
from mind.paths import PathGenerator

_FILLED = 4
"""Batches on a CPU are filled up to a multiple of this many: its matrix products take rows in groups, those left over are rounded
otherwise, and one bit is enough for another token."""

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Overlay:
    """Latents whose irreducible variance is set beside the paths.

    Attributes:
        latents: as the paths lead to them, with labels.
        path: folder they lie in.
    """

    latents: Latents
    path: Path


def measure_paths(
    generator: PathGenerator,
    labels: Tensor,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    finished: FinishedSteps | None = None,
    advance: Advance | None = None,
) -> Measurement:
    """Measure the paths of samples 0 .. n-1: straightness, efficiency and length ratios.

    Args:
        generator: walks them.
        labels: their classes, int64 [n].
        seed: of their noise and of the bootstrap.
        batch_size: paths at a time; changes no value beyond rounding. None: what suits the generator.
        finished: where what is known of each batch is kept, and taken from if it is there.
        advance: told how many paths are done.

    Returns:
        ``straightness``, as `analyses.straightness.summarise` makes it, at the generator's flow times.

    Raises:
        UserError: fewer than 1 path or batch size, fewer than 2 steps, or a path that cannot be measured.
    """
    size, n = batch_size or generator.batch_size, len(labels)
    if n < 1 or size < 1:
        raise UserError(f"there must be at least 1 path and 1 path at a time, got {n} and {size}")
    if len(generator.times) < 3:
        raise UserError(
            f"straightness needs at least 2 steps in time, and these settings have {len(generator.times) - 1}"
        )
    facts = [__version__, environment()["versions"], generator.device, generator.facts(), seed]
    parts = []
    for first in range(0, n, size):
        part = slice(first, min(first + size, n))
        key = digest([facts, labels[part].tolist(), first])
        kept = None if finished is None else finished.get(f"batch_{first:07d}", key)
        if kept is None:
            walked = _walked(generator, labels, part, seed)
            if finished is not None:
                finished.put(f"batch_{first:07d}", key, _plain(walked))
        parts.append(_paths(kept) if kept is not None else walked)
        if advance is not None:
            advance(part.stop - part.start)
    return summarise(join_paths(parts), times=_given_times(generator), seed=seed)


def _walked(generator: PathGenerator, labels: Tensor, part: slice, seed: int) -> Paths:
    """Walk one batch."""
    rows = np.arange(part.start, part.stop)
    if generator.device == "cpu":
        rows = np.pad(rows, (0, -len(rows) % _FILLED), mode="edge")
    indices, wanted = torch.from_numpy(rows), part.stop - part.start
    meter = TrajectoryMeter(first=part.start)
    try:
        generator.walk(labels[indices], indices, seed, lambda state: meter.add(state[:wanted]))
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{wanted} paths at a time are too many for the memory of {generator.device}: give a smaller batch size"
        ) from error
    return meter.paths()


def _plain(paths: Paths) -> dict[str, Any]:
    """Return `Paths` as JSON values."""
    straight = [None if math.isnan(one) else one for one in paths.straightness.tolist()]
    return {
        **paths._asdict(),
        "straightness": straight,
        "efficiency": paths.efficiency.tolist(),
        "steps": paths.steps.tolist(),
    }


def _paths(kept: Mapping[str, Any]) -> Paths:
    """Return what `_plain` was given."""
    straight, efficiency, steps = (np.array(kept[name], dtype=np.float64) for name in Paths._fields[:3])
    return Paths(straight, efficiency, steps, kept["skipped"])


def _given_times(generator: PathGenerator) -> list[float] | None:
    """Return the flow times of the states; None for an even grid from 0 to 1, whose name is then the published one."""
    times = list(generator.times)
    return None if np.allclose(times, np.linspace(0, 1, len(times)), rtol=0, atol=1e-9) else times


def irreducible_variance(generator: PathGenerator, overlay: Overlay, seed: int = 0) -> Measurement:
    """Return ``viv`` of the latents that the paths lead to, with its curve in the middle of every step.

    The latents are taken as they are: what they are scaled by has been decided by the generator.

    Raises:
        UserError: latents without labels, or too few of them for the covariance of a class.
    """
    if overlay.latents.labels is None:
        raise UserError(
            f"{overlay.path} has no labels: the irreducible variance is that given the class; encode with labels"
        )
    times = np.asarray(generator.times)
    try:
        return viv(overlay.latents, normalize=False, times=((times[1:] + times[:-1]) / 2).tolist(), seed=seed)
    except UserError as error:
        raise UserError(f"irreducible variance of {overlay.path}: {error}") from error


def with_variance(paths: Measurement, variance: Measurement) -> Measurement:
    """Return the measured paths with the irreducible variance beside their length ratios.

    Adds to ``details`` ``irreducible_variance`` [M], per dimension, and ``normalised_variance`` [M], which is it divided by its
    mean over the time of the path: 1 in the mean, as length ratios are on a straight path. Where both vary there is a companion
    ``correlation with irreducible variance`` over the steps; negative: short steps where the velocity is
    ambiguous.
    """
    curve, ratio = np.asarray(variance.details["curve"]), np.asarray(paths.details["length_ratio"])
    mean = float(curve @ _shares(paths))
    details = (
        {"irreducible_variance": curve, "normalised_variance": curve / mean}
        if mean
        else {"irreducible_variance": curve}
    )
    companions = dict(paths.companions)
    if curve.std() and ratio.std():
        companions["correlation with irreducible variance"] = Estimate(float(np.corrcoef(ratio, curve)[0, 1]))
    return replace(paths, details={**paths.details, **details}, companions=companions)


def _shares(paths: Measurement) -> np.ndarray:
    """Return the share of the time that each step takes, [M]."""
    times = paths.parameters["times"]
    steps = len(paths.details["t"])
    lengths = np.full(steps, 1.0) if times is None else np.diff(times)
    shares: np.ndarray = lengths / lengths.sum()
    return shares


def study_trajectories(
    generator: PathGenerator,
    out: Path,
    *,
    name: str,
    n: int = 256,
    overlay: Overlay | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Measure ``n`` paths, classes equally often, and write ``results.json``, ``summary.md`` and a figure.

    What is known of finished batches lies in ``out/paths``: the same call continues an interrupted one.

    Args:
        generator: walks the paths.
        out: created when absent.
        name: of the generator, in the figure and the summary.
        n: number of paths.
        overlay: latents whose irreducible variance is set beside the paths.
        seed: of noise, order of classes and bootstrap.
        batch_size: paths at a time.
        command: the command line, for the record.

    Raises:
        UserError: as `measure_paths` and `irreducible_variance`, or a folder that cannot be written.
    """
    make_writable(out)
    variance = (
        None if overlay is None else irreducible_variance(generator, overlay, seed)
    )  # refusals before the long work
    labels = class_labels(n, generator.num_classes, seed=seed)
    with progress("walking", n) as advance:
        paths = measure_paths(
            generator, labels, seed=seed, batch_size=batch_size, finished=FinishedSteps(out / "paths"), advance=advance
        )
    if variance is not None:
        paths = with_variance(paths, variance)
    results = _results(generator, paths, variance)
    results |= {
        "name": name,
        "n": n,
        "seed": seed,
        "command": command,
        "latents": overlay and _origin(overlay),
        "figures": [],
    }
    write_json(out / "results.json", results)  # before the figure, which matters less
    results["figures"] = [file.relative_to(out).as_posix() for file in _draw(name, paths, variance, out / "figures")]
    write_json(out / "results.json", results)
    write_text(out / "summary.md", "\n".join(summary_lines(results)) + "\n")
    return results


def _results(generator: PathGenerator, paths: Measurement, variance: Measurement | None) -> dict[str, Any]:
    """Return what was measured, of what and where."""
    facts = dict(generator.facts())
    measured = [paths] if variance is None else [paths, variance]
    return {
        "schema_version": TRAJECTORIES_SCHEMA_VERSION,
        "latentlab": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "device": generator.device,
        "generator": facts,
        "flow_times": list(generator.times),
        "measurements": [one.with_provenance(generator=facts).to_dict() for one in measured],
    }


def _origin(overlay: Overlay) -> dict[str, Any]:
    latents = overlay.latents
    return {
        "path": str(overlay.path),
        "fingerprint": latents.fingerprint,
        "n": latents.n,
        "shape": list(latents.shape),
    }


def _draw(name: str, paths: Measurement, variance: Measurement | None, folder: Path) -> Iterable[Path]:
    from figures import length_ratio
    from figures.style import save

    title = f"{name}: {len(paths.details['t'])} steps, {paths.n:,} paths"
    below = {} if variance is None else {title: variance.details}
    return save(length_ratio.draw({title: paths.details}, below), folder / "length_ratio")
