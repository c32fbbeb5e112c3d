"""The analysis: latents of a tokenizer (or of a folder) measured one measurement after the other, kept as each one finishes."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from latentlab import __version__
from latentlab.analysis_figures import draw_figures, remove_figures
from latentlab.codec import Codec, codec_of
from latentlab.data.base import ImageSet
from latentlab.encoding import cached_store_path, encode_images
from latentlab.errors import Unmeasurable, UserError
from latentlab.files import digest, file_sha256
from latentlab.finished import FinishedSteps
from latentlab.latents import Latents
from latentlab.measurement import SCHEMA_VERSION, Measurement
from latentlab.pixels import Pixels, SetPixels
from latentlab.prediction import chosen_predictors, options_of_study, told_prediction
from latentlab.ranks import Ranks
from latentlab.registry import (
    MeasurementFunction,
    card_of,
    check_needs,
    checked_parameters,
    find_measurement,
    measurement_names,
    needs_latents,
)
from latentlab.report_table import write_summary
from latentlab.results import Results
from latentlab.runtime import make_writable, progress, say
from latentlab.store import LatentStore
from latentlab.study.predictor.file import Predictor
from latentlab.subset import limit_latents
from latentlab.tokenizers.base import Tokenizer

_QUALITY = Path(__file__).parent / "quality"

Options = Mapping[str, Mapping[str, Any]]
"""Name of a measurement -> its parameters."""


@dataclass(frozen=True)
class Subject:
    """What is analysed.

    Attributes:
        latents: the latents.
        path: folder they lie in.
        images: what they were made of, when at hand.
        tokenizer: what made them, when at hand.
        batch_size: images at a time through it; None for what suits their size and the device.
    """

    latents: Latents
    path: Path
    images: ImageSet | None = None
    tokenizer: Tokenizer | None = None
    batch_size: int | None = None


def subject_of_tokenizer(
    tokenizer: Tokenizer, images: ImageSet, *, device: torch.device | str = "cpu", batch_size: int | None = None
) -> Subject:
    """Encode ``images`` into the cache (or find them there) and return what to analyse; arguments as in `Subject`."""
    path = cached_store_path(tokenizer, images)
    store = encode_images(tokenizer, images, path, device=device, batch_size=batch_size)
    return Subject(store, path, images, tokenizer, batch_size)


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
    options: Options | None = None,
    ranks: Ranks = Ranks(),
    draw: bool = True,
    predictor: Predictor | None = None,
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
        options: parameters of the measurements that differ from their defaults.
        ranks: processes that share the work, all of them in this call: each measurement is made whole by one of them, so that
            no value depends on their number. Rank 0 writes.
        draw: also draw the figures, which takes longer than many measurements.
        predictor: predicts generation quality of the measurements, which are made as in its study where ``options`` do not say
            otherwise; None for the predictors that ship for these images, if any, of measurements that happen to be made so.

    Returns:
        The results (on rank 0). A measurement that cannot be made of these latents is in ``refused`` with the reason; the
        others are made.

    Raises:
        UserError: unknown measurement, non-finite latents, or ``out`` cannot be written.
    """
    names = chosen_metrics(metrics)
    checked = {name: checked_parameters(name, given) for name, given in (options or {}).items()}
    predictors = chosen_predictors(predictor, subject.images)
    if predictor is not None:
        checked = options_of_study(predictor, checked)
    make_writable(out)
    _ = subject.latents.moments  # non-finite latents end the analysis here, before anything is measured
    finished = FinishedSteps(out / "measurements")
    images = None if subject.images is None else SetPixels(subject.images)
    codec = None if subject.tokenizer is None else codec_of(subject.tokenizer, device, subject.batch_size)
    inputs = Inputs(subject.latents, seed, str(device), images, codec, checked)
    outcome = Outcome.joined(ranks.gather(measure_all(inputs, ranks.share(names), finished)), names)
    results = Results(
        **_origin(subject),
        seed=seed,
        device=str(device),
        command=command,
        measurements=tuple(outcome.measurements),
        refused=outcome.refused,
        reused=tuple(outcome.reused),
    )
    if not ranks.first:
        return results
    results = replace(results, predictions=tuple(told_prediction(one, results, checked) for one in predictors))
    remove_figures(out)
    results.write(out)  # before the figures, which matter less
    if draw:
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
        unmeasurable: names of those among them that no such latents have.
        reused: names of those taken over from an earlier run.
    """

    measurements: list[Measurement] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    unmeasurable: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: Sequence["Outcome"], names: Sequence[str]) -> "Outcome":
        """Return what all ranks found, in the order of ``names``."""
        measured = {m.name: m for part in parts for m in part.measurements}
        refused = {name: reason for part in parts for name, reason in part.refused.items()}
        unmeasurable = {name for part in parts for name in part.unmeasurable}
        reused = {name for part in parts for name in part.reused}
        return cls(
            [measured[name] for name in names if name in measured],
            {name: refused[name] for name in names if name in refused},
            [name for name in names if name in unmeasurable],
            [name for name in names if name in reused],
        )


def measure_all(inputs: "Inputs", names: Sequence[str], finished: FinishedSteps) -> Outcome:
    """Make each measurement in ``names``, or take it from ``finished``; each one is kept there before the next begins."""
    outcome = Outcome()
    with progress("measuring", len(names)) as advance:
        for name in names:
            try:
                call = _plan(name, inputs)
                kept = finished.get(name, call.key)
                if kept is None:
                    fresh = _measure(name, call, inputs, again=name in finished)
            except UserError as error:
                outcome.refused[name] = str(error)
                if isinstance(error, Unmeasurable):
                    outcome.unmeasurable.append(name)
                continue
            if kept is None:
                finished.put(name, call.key, fresh)
            else:
                outcome.reused.append(name)
            outcome.measurements.append(Measurement.from_dict(fresh if kept is None else kept))
            advance(1)
    if outcome.reused:
        say(f"reused, as nothing has changed since the last run: {', '.join(outcome.reused)}")
    return outcome


def chosen_metrics(metrics: Sequence[str] | None) -> list[str]:
    """Return ``metrics`` without repetitions; for None all registered names but those made on request only.

    Raises:
        UserError: an unknown name, or none at all.
    """
    if metrics is None:
        return [name for name in measurement_names() if not _on_request(name)]
    if not metrics:
        raise UserError(f"no measurement is named. Available: {', '.join(measurement_names())}")
    for name in metrics:
        find_measurement(name)
    return list(dict.fromkeys(metrics))


def _on_request(name: str) -> bool:
    try:
        return card_of(name).on_request
    except UserError:  # cannot be imported: named later, with the reason, among what could not be measured
        return False


@dataclass(frozen=True)
class Inputs:
    """Everything a measurement of one subject may ask for."""

    latents: Latents
    seed: int = 0
    device: str = "cpu"
    images: Pixels | None = None
    codec: Codec | None = None
    options: Options = field(default_factory=dict)

    def offered(self) -> dict[str, Any]:
        """Return the arguments that a measurement gets when it has a parameter of that name."""
        codec = self.codec
        return {
            "seed": self.seed,
            "device": self.device,
            "images": self.images,
            "encode": codec and codec.encode,
            "decode": codec and codec.decode,
            "codebook": None if codec is None else codec.codebook,
        }

    def fingerprints(self, arguments: Mapping[str, Any]) -> list[str]:
        """Return what names the content of those arguments that are not plain values."""
        found = [self.latents.fingerprint, str(self.latents.has_masks)]
        if self.images is not None and "images" in arguments:
            found.append(self.images.fingerprint)
        if self.codec is not None and {"encode", "decode", "codebook"} & set(arguments):
            found.append(self.codec.fingerprint)
        return found


@dataclass(frozen=True)
class _Call:
    """One measurement about to be made: ``key`` names everything that determines its outcome."""

    function: MeasurementFunction
    arguments: dict[str, Any]
    key: str


def _plan(name: str, inputs: Inputs) -> _Call:
    """Return the call that makes the measurement ``name``.

    Raises:
        UserError: the subject lacks something it needs.
    """
    function = find_measurement(name)
    parameters = inspect.signature(function).parameters
    arguments = {key: value for key, value in inputs.offered().items() if key in parameters and value is not None}
    arguments |= inputs.options.get(name, {})
    check_needs(name, inputs.latents, arguments)
    defaults = {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}
    plain = {key: value for key, value in {**defaults, **arguments}.items() if _is_plain(value)}
    if "device" in plain:
        plain["device"] = inputs.device.partition(":")[0]  # which GPU of its kind does not matter
    code = _code_digest(function)
    key = digest([name, plain, inputs.fingerprints(arguments), SCHEMA_VERSION, __version__, code])
    return _Call(function, arguments, key)


def _is_plain(value: Any) -> bool:
    """Whether ``value`` has a written form that says all about it: functions and tensors have not."""
    return value is None or isinstance(value, bool | int | float | str | tuple | list)


def _measure(name: str, call: _Call, inputs: Inputs, again: bool) -> dict[str, Any]:
    """Make one measurement and return it as JSON values."""
    started = time.perf_counter()
    positional = (inputs.latents,) if needs_latents(call.function) else ()
    measurement = call.function(*positional, **call.arguments)
    seconds = round(time.perf_counter() - started, 2)
    say(f"{name}: measured{' again, as the input has changed,' if again else ''} in {seconds:.1f} s")
    return measurement.with_provenance(
        latents=inputs.latents.fingerprint, seed=call.arguments.get("seed"), seconds=seconds, latentlab=__version__
    ).to_dict()


@cache
def _code_digest(function: MeasurementFunction) -> str:
    """Return a digest of the module of a measurement and of what it may use, as first seen by this process.

    That is the modules beside it and those that judge images.
    """
    source = inspect.getsourcefile(function)
    folders = [Path(source).parent] if source else []
    return digest([file_sha256(file) for folder in [*folders, _QUALITY] for file in sorted(folder.glob("*.py"))])


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
