"""The bottleneck-collapse study: continuous latents and ids through the same few numbers, on several images and seeds.

Every run (tokenizer, setting, image, seed) is a finished step of its own below ``out/runs``: a killed study continues with the
runs that are missing, and changed weights, images, settings or code make the runs they concern anew.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from analyses import bottleneck, collapse_run, positions, views
from analyses.bottleneck import CODES, Sphere, SphereNorm, hidden_width
from analyses.collapse_run import VIEWS, Run, Setting, ViewSet, choose_images, make_view_sets, run_bottleneck
from analyses.positions import CodePositions, PatchPositions, Positions, patch_width, usual_patch
from latentlab import __version__
from latentlab.codec import Codec, codec_of
from latentlab.collapse_report import COLLAPSE_SCHEMA_VERSION, judge, summarise, write_summary
from latentlab.data.base import ImageSet
from latentlab.errors import UserError
from latentlab.files import atomic_path, digest, file_sha256, write_json
from latentlab.finished import FinishedSteps
from latentlab.latents import TokenizerSpec
from latentlab.pixels import SetPixels
from latentlab.quality.perceptual import PerceptualDistance, perceptual_distance
from latentlab.results import environment
from latentlab.runtime import make_writable, progress, say
from latentlab.tokenizers.base import DiscreteTokenizer, Tokenizer

PUBLISHED = Setting(6, "pairs")
CONTROLS = (
    Setting(6, "none"),
    Setting(6, "whole"),
    *(Setting(dims, "pairs") for dims in (2, 4, 8, 16)),
)
"""What is added to the published setting: no normalisation, one sphere, fewer and more circles."""

_CODE = (bottleneck, collapse_run, positions, views)


@dataclass(frozen=True)
class Side:
    """One tokenizer of the study.

    Attributes:
        path: ``continuous`` or ``discrete``.
        spec: of the tokenizer.
        codec: its two functions.
        shape: of the latent of one image in the tokenizer's layout.
        patch: side of the patches of continuous latents; 1 for ids.
        codes: vocabulary that fixes the number of parameters.
    """

    path: str
    spec: TokenizerSpec
    codec: Codec
    shape: tuple[int, ...]
    patch: int
    codes: int

    @property
    def published_scale(self) -> bool:
        """Whether the tokenizer has a published normalisation."""
        return any(self.spec.shift) or any(scale != 1 for scale in self.spec.scale)

    @property
    def normalisation(self) -> str:
        """What is done to its latents first, in words."""
        if self.path == "discrete":
            return "none: ids"
        return "published shift and scale" if self.published_scale else "standardised per channel over the fitted views"

    def positions(self, sets: dict[str, ViewSet]) -> Positions:
        """Return how its latents become rows in the runs on these views."""
        if self.codec.codebook is not None:
            return CodePositions(self.shape, self.codec.codebook)
        if not self.published_scale:
            return collapse_run.standardised_positions(sets, self.patch, self.codes)
        shift, scale = torch.tensor(self.spec.shift), torch.tensor(self.spec.scale)
        return PatchPositions(self.shape, self.patch, shift, scale, self.codes)

    def describe(self) -> dict[str, Any]:
        """Return what ``results.json`` says about it."""
        return {
            "tokenizer": self.spec.to_dict(),
            "latent_shape": list(self.shape),
            "patch": self.patch,
            "codes": self.codes,
            "normalisation": self.normalisation,
            "fingerprint": self.codec.fingerprint,
        }


@dataclass(frozen=True)
class Study:
    """What is to be run.

    Attributes:
        sides: one tokenizer or two, continuous before discrete.
        images: the set that the studied and the held-out images are chosen from.
        settings: bottlenecks, the one the verdict is about first.
        subjects: number of images.
        seeds: number of seeds; each draws its own views and initial weights.
        iterations: optimiser steps of each run.
        distance: perceptual distance.
        device: where bottlenecks and perceptual network are.
    """

    sides: tuple[Side, ...]
    images: ImageSet
    settings: tuple[Setting, ...]
    subjects: int
    seeds: int
    iterations: int
    distance: PerceptualDistance
    device: str

    @cached_property
    def pixels(self) -> SetPixels:
        """The images as floats."""
        return SetPixels(self.images)

    @cached_property
    def chosen(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the studied images and of those held out."""
        return choose_images(self.pixels, self.subjects)

    def steps(self) -> Iterator["_Step"]:
        """Yield all runs; those on the same views of the same tokenizer follow each other."""
        for seed in range(self.seeds):
            for subject in self.chosen[0].tolist():
                for side in self.sides:
                    for setting in self.settings:
                        yield _Step(side, setting, subject, seed)

    def key(self, step: "_Step") -> str:
        """Return a name for everything that determines a run."""
        side = step.side
        return digest(
            [
                COLLAPSE_SCHEMA_VERSION, __version__, _code_digest(),
                side.codec.fingerprint, side.patch, side.codes, self.images.fingerprint, step.subject,
                self.chosen[1].tolist(), step.seed, str(step.setting), self.iterations, self.distance.name,
            ]
        )  # fmt: skip


@cache
def _code_digest() -> str:
    """Return a digest of the modules that make a run, as first seen by this process."""
    return digest([file_sha256(Path(str(module.__file__))) for module in _CODE])


@dataclass(frozen=True)
class _Step:
    side: Side
    setting: Setting
    subject: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.side.path}-{self.setting.dims}-{self.setting.sphere}-image{self.subject}-seed{self.seed}"


def plan_study(
    continuous: Tokenizer | None,
    discrete: Tokenizer | None,
    images: ImageSet,
    *,
    dims: int = PUBLISHED.dims,
    sphere: Sphere = PUBLISHED.sphere,
    controls: bool = False,
    subjects: int = 3,
    seeds: int = 2,
    iterations: int = 1000,
    patch: int | None = None,
    perceptual: str = "auto",
    device: str = "cpu",
) -> Study:
    """Check everything that can be checked before anything is trained.

    Args:
        continuous: a tokenizer with continuous latents, or None.
        discrete: a tokenizer with a codebook, or None; at least one of the two is needed.
        images: at least ``subjects`` + 1 of them.
        dims: numbers in the bottleneck.
        sphere: ``pairs``, ``whole`` or ``none``.
        controls: add `CONTROLS`.
        subjects: images to study.
        seeds: runs of each image.
        iterations: optimiser steps.
        patch: side of the continuous patches; None as `usual_patch` says.
        perceptual: name for `perceptual_distance`.
        device: where everything is computed.

    Raises:
        UserError: no tokenizer, one of the wrong kind, an impossible setting or patch, or too few images.
    """
    for option, value in (("images", subjects), ("seeds", seeds), ("iterations", iterations)):
        if value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    first = Setting(dims, sphere)
    settings = tuple(dict.fromkeys([first, *(CONTROLS if controls else ())]))
    for setting in settings:
        SphereNorm(setting.dims, setting.sphere)
    sides = _sides(continuous, discrete, images, patch, device)
    for side in sides:
        for setting in settings if side.path == "continuous" else ():
            hidden_width(patch_width(side.shape, side.patch), setting.dims, side.codes)
    study = Study(
        sides, images, settings, subjects, seeds, iterations, perceptual_distance(perceptual, device), device,
    )  # fmt: skip
    _ = study.chosen
    return study


def _sides(
    continuous: Tokenizer | None, discrete: Tokenizer | None, images: ImageSet, patch: int | None, device: str
) -> tuple[Side, ...]:
    """Return the tokenizers with all that must agree between them."""
    if continuous is None and discrete is None:
        raise UserError("give a continuous tokenizer, a discrete one, or both")
    if isinstance(continuous, DiscreteTokenizer):
        raise UserError(f"'{continuous.spec.name}' has a codebook: give it as the discrete tokenizer")
    if discrete is not None and not isinstance(discrete, DiscreteTokenizer):
        raise UserError(f"'{discrete.spec.name}' has no codebook: give it as the continuous tokenizer")
    one = SetPixels(images).take(np.array([0]))
    sides, cells, codes = [], None, CODES
    if discrete is not None:
        codec = codec_of(discrete, device)
        assert codec.codebook is not None
        shape, codes = tuple(codec.encode(one).shape[1:]), len(codec.codebook)
        cells = shape[1] * shape[2] if len(shape) == 3 else shape[0]
        sides.append(Side("discrete", discrete.spec, codec, shape, 1, codes))
    if continuous is not None:
        codec = codec_of(continuous, device)
        shape = tuple(codec.encode(one).shape[1:])
        chosen = patch or usual_patch(shape, cells)
        sides.insert(0, Side("continuous", continuous.spec, codec, shape, chosen, codes))
    elif patch is not None:
        raise UserError("patch is for continuous latents: ids are not cut")
    return tuple(sides)


def run_study(study: Study, out: Path, *, command: str | None = None) -> dict[str, Any]:
    """Make all runs that are missing in ``out``, then figures, ``summary.md`` and ``results.json``; return the results.

    Args:
        study: from `plan_study`.
        out: run directory.
        command: the command line, for the record.

    Raises:
        UserError: ``out`` cannot be written, or a training diverged.
    """
    make_writable(out)
    runs, reused = _all_runs(study, out)
    if reused:
        say(f"reused, as nothing has changed since the last run: {reused} of {len(runs)} runs")
    summaries = summarise(runs)
    results = {
        "schema_version": COLLAPSE_SCHEMA_VERSION,
        "latentlab": __version__,
        "command": command,
        "environment": environment(),
        "device": study.device,
        "perceptual": study.distance.name,
        "data": {"name": study.images.name, "fingerprint": study.images.fingerprint, "n": study.images.n},
        "image_size": study.images.image_size,
        "subjects": study.chosen[0].tolist(),
        "heldout_images": study.chosen[1].tolist(),
        "seeds": study.seeds,
        "iterations": study.iterations,
        "views": VIEWS,
        "tokenizers": {side.path: side.describe() for side in study.sides},
        "settings": [{"dims": s.dims, "sphere": s.sphere, "name": str(s)} for s in study.settings],
        "summaries": [summary.to_dict() for summary in summaries],
        "verdict": judge(summaries, study.distance.name).to_dict(),
        "runs": runs,
    }
    results["figures"] = _draw(results, out)
    write_json(out / "results.json", results)
    write_summary(results, out)
    return results


def _all_runs(study: Study, out: Path) -> tuple[list[dict[str, Any]], int]:
    """Return all runs as JSON values, and how many of them were there already."""
    finished, steps = FinishedSteps(out / "runs"), list(study.steps())
    runs, reused = [], 0
    sets: tuple[Any, dict[str, ViewSet]] | None = None
    with progress("bottlenecks", len(steps)) as advance:
        for step in steps:
            key, picture = study.key(step), out / "runs" / f"{step.name}.png"
            kept = finished.get(step.name, key) if picture.is_file() else None
            if kept is None:
                wanted = (step.side.path, step.subject, step.seed)
                if sets is None or sets[0] != wanted:
                    codec = step.side.codec
                    made = make_view_sets(
                        study.pixels, step.subject, study.chosen[1], codec.encode, codec.decode, step.seed
                    )
                    sets = wanted, made
                run = _run(study, step, sets[1])
                _write_pictures(run.pictures, picture)  # first: a finished step has its picture
                kept = _record(step, run, picture.relative_to(out).as_posix())
                finished.put(step.name, key, kept)
            else:
                reused += 1
            runs.append(kept)
            advance(1)
    return runs, reused


def _run(study: Study, step: _Step, sets: dict[str, ViewSet]) -> Run:
    return run_bottleneck(
        sets,
        step.side.positions(sets),
        step.setting,
        step.side.codec.decode,
        study.distance,
        iterations=study.iterations,
        seed=step.seed,
        device=study.device,
    )


def _record(step: _Step, run: Run, picture: str) -> dict[str, Any]:
    """Return one run as JSON values."""
    return {
        "path": step.side.path,
        "tokenizer": step.side.spec.name,
        "dims": step.setting.dims,
        "sphere": step.setting.sphere,
        "setting": str(step.setting),
        "subject": step.subject,
        "seed": step.seed,
        "parameters": run.parameters,
        "positions": run.positions,
        "distinct": run.distinct,
        "unseen": dict(run.unseen),
        "iterations": run.iterations,
        "latent_norm": run.latent_norm,
        "curves": {name: dict(curves) for name, curves in run.curves.items()},
        "references": dict(run.references),
        "picture": picture,
    }


def _write_pictures(pictures: Tensor, path: Path) -> None:
    """Write [rows,k,3,H,W] in [-1,1] as one PNG of rows x k tiles."""
    rows, k, _, height, width = pictures.shape
    tiles = ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    sheet = tiles.permute(0, 3, 1, 4, 2).reshape(rows * height, k * width, 3)
    with atomic_path(path) as temporary:
        Image.fromarray(sheet.numpy()).save(temporary, format="PNG")


def read_pictures(path: Path, side: int) -> np.ndarray:
    """Return the tiles of a run's PNG, uint8 [rows,k,3,side,side]: views, reconstructions, bottlenecked.

    Raises:
        UserError: the file is damaged or of another size.
    """
    try:
        with Image.open(path) as image:
            sheet = np.asarray(image.convert("RGB"))
        return sheet.reshape(3, side, -1, side, 3).transpose(0, 2, 4, 1, 3)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the same command makes it again") from error


def _draw(results: dict[str, Any], out: Path) -> list[str]:
    """Draw the curves, and for every image what the first seed's runs let through; return files relative to ``out``."""
    from figures import collapse_curves, collapse_strips
    from figures.style import save

    files = [*save(collapse_curves.draw(results["runs"], results["perceptual"]), out / "figures" / "curves")]
    for subject in results["subjects"]:
        runs = [run for run in results["runs"] if run["subject"] == subject and run["seed"] == 0]
        blocks: dict[str, dict[str, np.ndarray]] = {}
        for run in runs:
            view, own, through = read_pictures(out / run["picture"], results["image_size"])
            rows = blocks.setdefault(f"{run['path']}: {run['tokenizer']}", {"view": view, "own reconstruction": own})
            rows[run["setting"]] = through
        title = f"{Path(results['data']['name']).name}, image {subject}"  # of a path its end is enough to know it
        files += save(collapse_strips.draw(blocks, name=title), out / "figures" / f"strips_image{subject}")
    return [file.relative_to(out).as_posix() for file in files]


def chosen_defaults(continuous: str | None, discrete: str | None) -> Sequence[str | None]:
    """Return the names of the tokenizers: the embedded pair when none is named, else those that are."""
    return ("kl", "ibq") if continuous is None and discrete is None else (continuous, discrete)
