"""The analysis: latents of a tokenizer (or of a folder) measured one measurement after the other, kept as each one finishes."""

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from latentlab import __version__
from latentlab.analysis_figures import draw_figures, remove_figures
from latentlab.data.base import ImageSet
from latentlab.encoding import cached_store_path, encode_images
from latentlab.errors import UserError
from latentlab.files import digest, file_sha256
from latentlab.finished import FinishedSteps
from latentlab.latents import Latents
from latentlab.measurement import SCHEMA_VERSION, Measurement
from latentlab.registry import MeasurementFunction, check_needs, find_measurement, measurement_names
from latentlab.report_table import write_summary
from latentlab.results import Results
from latentlab.runtime import make_writable, progress, say
from latentlab.store import LatentStore
from latentlab.subset import limit_latents
from latentlab.tokenizers.base import Tokenizer


@dataclass(frozen=True)
class Subject:
    """What is analysed.

    Attributes:
        latents: the latents.
        path: folder they lie in.
        images: what they were made of, when at hand.
        tokenizer: what made them, when at hand.
    """

    latents: Latents
    path: Path
    images: ImageSet | None = None
    tokenizer: Tokenizer | None = None


def subject_of_tokenizer(tokenizer: Tokenizer, images: ImageSet, *, device: torch.device | str = "cpu") -> Subject:
    """Encode ``images`` into the cache (or find them there) and return what to analyse."""
    path = cached_store_path(tokenizer, images)
    return Subject(encode_images(tokenizer, images, path, device=device), path, images, tokenizer)


def subject_of_folder(path: Path, *, limit: int | None = None, seed: int = 0) -> Subject:
    """Open latents that lie in a folder: a store of ours, or one in LightningDiT's layout.

    Args:
        path: the folder.
        limit: use at most this many, balanced over classes.
        seed: decides which ones ``limit`` keeps.

    Raises:
        UserError: no such folder, nothing usable in it, or ``limit`` below 1.
    """
    return Subject(limit_latents(LatentStore(path), limit, seed), path)


def analyze(
    subject: Subject,
    out: Path,
    *,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    command: str | None = None,
) -> Results:
    """Measure, draw and write everything into ``out``; what an earlier run there finished on the same input is taken over.

    Writes ``measurements/NAME.json`` as each measurement finishes, then ``results.json``, ``figures/`` and ``summary.md``.

    Args:
        subject: the latents and where they come from.
        out: run directory.
        metrics: names of measurements, None for all registered ones.
        seed: seed of everything random.
        device: given to measurements that can use it.
        command: the command line, for the record.

    Returns:
        The results. A measurement that cannot be made of these latents is in ``refused`` with the reason; the others are made.

    Raises:
        UserError: unknown measurement, non-finite latents, or ``out`` cannot be written.
    """
    names = chosen_metrics(metrics)
    make_writable(out)
    _ = subject.latents.moments  # non-finite latents end the analysis here, before anything is measured
    remove_figures(out)
    outcome = measure_all(subject.latents, names, FinishedSteps(out / "measurements"), seed=seed, device=device)
    results = Results(
        **_origin(subject),
        seed=seed,
        device=str(device),
        command=command,
        measurements=tuple(outcome.measurements),
        refused=outcome.refused,
        reused=tuple(outcome.reused),
    )
    results.write(out)  # before the figures, which matter less
    figures, notes = draw_figures(
        results, out, latents=subject.latents, images=subject.images, tokenizer=subject.tokenizer
    )
    results = replace(results, figures=tuple(figures), notes=tuple(notes))
    results.write(out)
    write_summary(results, out)
    return results


@dataclass
class Outcome:
    """What became of the measurements.

    Attributes:
        measurements: the finished ones.
        refused: name -> reason of those that cannot be made of these latents.
        reused: names of those taken over from an earlier run.
    """

    measurements: list[Measurement] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)


def measure_all(
    latents: Latents,
    names: Sequence[str],
    finished: FinishedSteps,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Outcome:
    """Make each measurement in ``names``, or take it from ``finished``; each one is kept there before the next begins."""
    outcome = Outcome()
    with progress("measuring", len(names)) as advance:
        for name in names:
            try:
                function = find_measurement(name)
                check_needs(name, latents)
                arguments = _arguments(function, seed, device)
                key = _key(name, function, arguments, latents)
                kept = finished.get(name, key)
                if kept is None:
                    fresh = _measure(name, function, latents, arguments, again=name in finished)
            except UserError as error:
                outcome.refused[name] = str(error)
                continue
            if kept is None:
                finished.put(name, key, fresh)
            else:
                outcome.reused.append(name)
            outcome.measurements.append(Measurement.from_dict(fresh if kept is None else kept))
            advance(1)
    if outcome.reused:
        say(f"reused, as nothing has changed since the last run: {', '.join(outcome.reused)}")
    return outcome


def chosen_metrics(metrics: Sequence[str] | None) -> list[str]:
    """Return ``metrics`` without repetitions, or all registered names for None.

    Raises:
        UserError: an unknown name, or none at all.
    """
    if metrics is None:
        return measurement_names()
    if not metrics:
        raise UserError(f"no measurement is named. Available: {', '.join(measurement_names())}")
    for name in metrics:
        find_measurement(name)
    return list(dict.fromkeys(metrics))


def _measure(
    name: str, function: MeasurementFunction, latents: Latents, arguments: dict[str, Any], again: bool
) -> dict[str, Any]:
    """Make one measurement and return it as JSON values."""
    started = time.perf_counter()
    measurement = function(latents, **arguments)
    seconds = round(time.perf_counter() - started, 2)
    say(f"{name}: measured{' again, as the input has changed,' if again else ''} in {seconds:.1f} s")
    return measurement.with_provenance(
        latents=latents.fingerprint, seed=arguments.get("seed"), seconds=seconds, latentlab=__version__
    ).to_dict()


def _arguments(function: MeasurementFunction, seed: int, device: torch.device | str) -> dict[str, Any]:
    """Return the arguments of one call: seed and device where the measurement has them."""
    offered = {"seed": seed, "device": str(device)}
    known = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in known}


def _key(name: str, function: MeasurementFunction, arguments: dict[str, Any], latents: Latents) -> str:
    """Return a name for everything that determines a measurement: latents, all parameters and the code."""
    signature = inspect.signature(function)
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}
    code = _code_digest(function)
    return digest(
        [name, {**defaults, **arguments}, latents.fingerprint, latents.has_masks, SCHEMA_VERSION, __version__, code]
    )


@cache
def _code_digest(function: MeasurementFunction) -> str:
    """Return a digest of the module of a measurement and of those beside it, which it may use, as first seen by this process."""
    source = inspect.getsourcefile(function)
    return digest([file_sha256(file) for file in sorted(Path(source).parent.glob("*.py"))]) if source else ""


def _origin(subject: Subject) -> dict[str, Any]:
    """Return where the latents come from, as fields of `Results`."""
    latents, images = subject.latents, subject.images
    return {
        "tokenizer": None if latents.spec is None else latents.spec.to_dict(),
        "data": None if images is None else {"name": images.name, "fingerprint": images.fingerprint, "n": images.n},
        "latents": {
            "path": str(subject.path),
            "fingerprint": latents.fingerprint,
            "n": latents.n,
            "shape": list(latents.shape),
        },
        "skipped_images": () if images is None else images.skipped,
    }
