"""How straight the sampling paths of a trained generator are, and whether its steps are short where the velocity is ambiguous.

Zhong et al., "Diffusing in the Right Space" (arXiv 2606.03578), eq. 10, 11 and figure 10. Paths are walked batch after batch and
measured while they are walked: three states are in memory, and of every path the lengths of its steps. `mind.paths` says in
which frame states are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analyses.straightness import Paths, TrajectoryMeter, join_paths, summarise
from latentlab import __version__
from latentlab.errors import UserError
from latentlab.files import digest, read_json, write_json, write_text
from latentlab.finished import FinishedSteps
from latentlab.measurement import Measurement
from latentlab.path_variance import Overlay, irreducible_variance, with_variance
from latentlab.ranks import Ranks
from latentlab.results import environment
from latentlab.runtime import make_writable, progress
from latentlab.trajectory_report import TRAJECTORIES_SCHEMA_VERSION, summary_lines
from mind.labels import class_labels
from mind.paths import PathGenerator

_FILLED = 4
"""Batches on a CPU are filled up to a multiple of this many: its matrix products take rows in groups, those left over are rounded
otherwise, and one bit is enough for another token."""

Advance = Callable[[int], None]
Walked = dict[int, Paths]
"""What is known of batches of paths, by the number of their first path."""


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
    batches = _batches(generator, len(labels), batch_size)
    return _measured(generator, [_walk_batches(generator, labels, batches, seed, finished, advance)], seed)


def _batches(generator: PathGenerator, n: int, batch_size: int | None) -> list[slice]:
    """Return the paths of every batch; they do not depend on the number of ranks."""
    size = generator.batch_size if batch_size is None else batch_size
    if n < 1 or size < 1:
        raise UserError(f"there must be at least 1 path and 1 path at a time, got {n} and {size}")
    if len(generator.times) < 3:
        raise UserError(
            f"straightness needs at least 2 steps in time, and these settings have {len(generator.times) - 1}: set steps=50"
        )
    return [slice(first, min(first + size, n)) for first in range(0, n, size)]


def _walk_batches(
    generator: PathGenerator,
    labels: Tensor,
    batches: Sequence[slice],
    seed: int,
    finished: FinishedSteps | None,
    advance: Advance | None,
) -> Walked:
    """Walk these batches, or take from ``finished`` what is known of them."""
    where = generator.device.partition(":")[0]  # of several GPUs any will do
    facts = [__version__, environment()["versions"], where, generator.facts(), seed]
    known = {}
    for part in batches:
        name, key = f"batch_{part.start:07d}", digest([facts, labels[part].tolist(), part.start])
        kept = None if finished is None else finished.get(name, key)
        known[part.start] = _walked(generator, labels, part, seed) if kept is None else _paths(kept)
        if finished is not None and kept is None:
            finished.put(name, key, _plain(known[part.start]))
        if advance is not None:
            advance(part.stop - part.start)
    return known


def _measured(generator: PathGenerator, shares: Sequence[Walked], seed: int) -> Measurement:
    """Return the measurement of all paths, in order, from what every rank has walked."""
    known = {first: paths for share in shares for first, paths in share.items()}
    return summarise(join_paths([known[first] for first in sorted(known)]), times=_given_times(generator), seed=seed)


def _walked(generator: PathGenerator, labels: Tensor, part: slice, seed: int) -> Paths:
    """Walk one batch."""
    rows = np.arange(part.start, part.stop)
    if generator.device == "cpu":
        rows = np.pad(rows, (0, -len(rows) % _FILLED), mode="edge")
    indices, wanted = torch.from_numpy(rows), part.stop - part.start
    meter = TrajectoryMeter(first=part.start)
    generator.walk(labels[indices], indices, seed, lambda state: meter.add(state[:wanted]))
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


def study_trajectories(
    generator: PathGenerator,
    out: Path,
    *,
    name: str,
    n: int = 256,
    overlay: Overlay | None = None,
    beside: Sequence[Path] = (),
    seed: int = 0,
    batch_size: int | None = None,
    command: str | None = None,
    ranks: Ranks = Ranks(),
) -> dict[str, Any]:
    """Measure ``n`` paths, classes equally often, and write ``results.json``, ``summary.md`` and a figure.

    What is known of finished batches lies in ``out/paths``: the same call continues an interrupted one.

    Args:
        generator: walks the paths.
        out: created when absent.
        name: of the generator, in the figure and the summary.
        n: number of paths.
        overlay: latents whose irreducible variance is set beside the paths.
        beside: folders of earlier studies, of other generators or settings, that table and figure show too.
        seed: of noise, order of classes and bootstrap.
        batch_size: paths at a time.
        command: the command line, for the record.
        ranks: processes that share the paths; all must call this. Rank 0 writes, and the others return nothing.

    Raises:
        UserError: as `measure_paths` and `irreducible_variance`, a folder that cannot be written, or one of ``beside`` that holds
            no finished study.
    """
    make_writable(out)
    batches = _batches(generator, n, batch_size)  # refusals before the long work
    others = [_earlier(folder) for folder in beside]
    variance = irreducible_variance(generator, overlay, seed) if overlay is not None and ranks.first else None
    labels = class_labels(n, generator.num_classes, seed=seed)
    own = ranks.share(batches)
    with _bar(sum(part.stop - part.start for part in own), ranks) as advance:
        walked = _walk_batches(generator, labels, own, seed, FinishedSteps(out / "paths"), advance)
    shares = ranks.gather(walked)
    if not ranks.first:
        return {}
    paths = _measured(generator, shares, seed)
    if variance is not None:
        paths = with_variance(paths, variance)
    results = _results(generator, paths, variance)
    results |= {
        "name": name,
        "n": n,
        "seed": seed,
        "command": command,
        "latents": overlay and _origin(overlay),
        "beside": others,
        "figures": [],
    }
    write_json(out / "results.json", results)  # before the figure, which matters less
    results["figures"] = [file.relative_to(out).as_posix() for file in _draw([results, *others], out / "figures")]
    write_json(out / "results.json", results)
    write_text(out / "summary.md", "\n".join(summary_lines(results)) + "\n")
    return results


@contextmanager
def _bar(total: int, ranks: Ranks) -> Iterator[Advance | None]:
    """Show the progress of rank 0, which is about that of every rank."""
    if not ranks.first:
        yield None
        return
    with progress("walking", total) as advance:
        yield advance


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


def _earlier(folder: Path) -> dict[str, Any]:
    """Return what table and figure need of the study in ``folder``."""
    found = read_json(folder / "results.json")
    kept = ("name", "n", "generator", "flow_times", "measurements")
    whole = isinstance(found, dict) and found.get("schema_version") == TRAJECTORIES_SCHEMA_VERSION
    if not whole or not all(key in found for key in kept):
        raise UserError(f"{folder} holds no results of this version's `latentlab trajectories`: run it there again")
    return {"path": str(folder), **{key: found[key] for key in kept}}


def _draw(studies: Sequence[Mapping[str, Any]], folder: Path) -> Iterable[Path]:
    from figures import length_ratio
    from figures.style import save

    lengths, variances = {}, {}
    for study in studies:
        title = f"{study['name']}: {len(study['flow_times']) - 1} steps, {study['n']:,} paths"
        if title in lengths:
            title += f" ({Path(study['path']).name})"
        first, *rest = study["measurements"]
        lengths[title] = first["details"]
        if rest:
            variances[title] = rest[0]["details"]
    return save(length_ratio.draw(lengths, variances), folder / "length_ratio")
