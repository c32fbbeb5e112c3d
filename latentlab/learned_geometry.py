"""The learned geometry of MIND's token tables, of weights and of training runs side by side: numbers, lists and figures."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentlab import __version__
from latentlab.encoding import slug
from latentlab.errors import UserError
from latentlab.files import write_json, write_text
from latentlab.geometry_report import GEOMETRY_SCHEMA_VERSION, summary_lines
from latentlab.quality.fidelity import to_uint8
from latentlab.results import environment
from latentlab.runtime import make_writable, say
from latentlab.study.training.runs import norm_history
from latentlab.tokenizers.base import DiscreteTokenizer
from mind.learned_geometry import LearnedGeometry, codebook_agreement, learned_geometry, nearest_codes
from mind.network import Mind
from mind.open_generator import open_generator, weight_file
from mind.released import load_mind, load_released
from mind.weight_files import find_weights

SHOWN_CODES = 8
"""Codes in a figure, evenly spaced over the vocabulary."""


@dataclass(frozen=True)
class Subject:
    """One token table.

    Attributes:
        name: unique in the study.
        geometry: what was measured.
        codebook: of the tokenizer, [v,c]; None where the tokenizer is not at hand.
        pictures: what the shown codes and their neighbours decode to, uint8 [r,1+k,3,H,W]; None likewise.
        history: columns of norms over training; empty for weights alone.
    """

    name: str
    geometry: LearnedGeometry
    codebook: Tensor | None
    pictures: np.ndarray | None
    history: Mapping[str, list[float]]

    @property
    def shown(self) -> Tensor:
        """Codes in the figure, int64 [r]."""
        return shown_codes(self.geometry.codes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        neighbours = self.geometry.neighbours
        agreement = None if self.codebook is None else codebook_agreement(neighbours, self.codebook)
        return {
            **self.geometry.to_dict(),
            "codebook_agreement": agreement,
            "history": {name: list(values) for name, values in self.history.items()},
        }


def shown_codes(codes: int) -> Tensor:
    """Return up to `SHOWN_CODES` code numbers, evenly spaced, int64 [r]."""
    return torch.linspace(0, codes - 1, min(SHOWN_CODES, codes)).round().long()


def open_subject(weights: str | Path, name: str, seed: int = 0) -> Subject:
    """Measure the token table of weights, or of the raw weights in the folder of a finished training run.

    Raises:
        UserError: no weights there, or a table that cannot be measured.
    """
    run = Path(weights) if Path(weights).is_dir() else None
    model, tokenizer, grid = _opened(weight_file(weights))
    geometry = learned_geometry(model.table, seed)
    history = {} if run is None else norm_history(run)
    if tokenizer is None:
        return Subject(name, geometry, None, None, history)
    pictures = code_pictures(tokenizer, grid, _shown_with_neighbours(geometry))
    return Subject(name, geometry, tokenizer.codebook.detach(), pictures, history)


def _opened(weights: str | Path) -> tuple[Mind, DiscreteTokenizer | None, tuple[int, ...]]:
    """Return model, tokenizer and grid; the model alone where its tokenizer is not at hand."""
    path = find_weights(weights)
    try:
        generator = open_generator(path)
        return generator.model, generator.tokenizer, generator.grid
    except UserError as error:
        model = load_mind(path) if path.suffix == ".safetensors" else load_released(path)
        say(f"{path}: no comparison with the codebook: {error}")
        return model, None, ()


def _shown_with_neighbours(geometry: LearnedGeometry) -> Tensor:
    """Return the shown codes, each with its neighbours, int64 [r,1+k]."""
    codes = shown_codes(geometry.codes)
    return torch.cat([codes[:, None], geometry.neighbours[codes]], dim=1)


@torch.inference_mode()
def code_pictures(tokenizer: DiscreteTokenizer, grid: tuple[int, ...], codes: Tensor) -> np.ndarray:
    """Return what each code looks like: the middle of a picture that consists of this code alone.

    Args:
        tokenizer: decodes ids.
        grid: rows and columns of ids per image, or (l,) for 1-D ids, whose pictures are not cut.
        codes: [r,m].

    Returns:
        uint8 [r,m,3,H,W].
    """
    same = codes.flatten().view(-1, *[1] * len(grid)).expand(-1, *grid)
    parts = [to_uint8(tokenizer.decode_indices(part).float()) for part in same.split(32)]
    pictures = torch.cat(parts)
    if len(grid) == 2:
        height, width = pictures.shape[2:]
        pictures = pictures[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4]
    return pictures.view(*codes.shape, *pictures.shape[1:]).numpy()


def study_geometry(
    weights: Sequence[str | Path], runs: Sequence[Path], out: Path, *, seed: int = 0, command: str | None = None
) -> dict[str, Any]:
    """Measure token tables, and write ``results.json``, ``summary.md``, the neighbours of every code and figures.

    Args:
        weights: names of embedded weights, or files.
        runs: folders of training runs; their norms over training are drawn too.
        out: created when absent.
        seed: of the uniform points that tables are compared with.
        command: the command line, for the record.

    Raises:
        UserError: nothing to measure, weights that are not there, or a folder that cannot be written.
    """
    sources = [*((str(one), Path(one).stem) for one in weights), *((str(run), run.resolve().name) for run in runs)]
    if not sources:
        raise UserError("give weights or folders of training runs")
    make_writable(out)
    names = _distinct([name for _, name in sources], [source for source, _ in sources])
    subjects = [open_subject(source, name, seed) for (source, _), name in zip(sources, names, strict=True)]
    results: dict[str, Any] = {
        "schema_version": GEOMETRY_SCHEMA_VERSION,
        "latentlab": __version__,
        "command": command,
        "environment": environment(),
        "seed": seed,
        "tables": {subject.name: subject.to_dict() for subject in subjects},
    }
    lists = [_write_neighbours(subject, out) for subject in subjects]
    results["neighbours"] = [file.relative_to(out).as_posix() for file in lists]
    results["figures"] = [file.relative_to(out).as_posix() for file in _draw(subjects, out / "figures")]
    write_json(out / "results.json", results)
    write_text(out / "summary.md", "\n".join(summary_lines(results)) + "\n")
    return results


def _distinct(names: list[str], sources: list[str]) -> list[str]:
    """Return names, or the whole source where two would be called the same."""
    found = [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]
    if repeated := [name for name in found if found.count(name) > 1]:
        raise UserError(f"{repeated[0]} is given twice")
    return found


def _write_neighbours(subject: Subject, out: Path) -> Path:
    """Write the nearest codes of every code, nearest first, with their angles."""
    geometry = subject.geometry
    k = geometry.neighbours.shape[1]
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["code", *(f"neighbour_{i}" for i in range(1, k + 1)), *(f"degrees_{i}" for i in range(1, k + 1))])
    rows = zip(geometry.neighbours.tolist(), geometry.neighbour_angles.tolist(), strict=True)
    for code, (numbers, angles) in enumerate(rows):
        table.writerow([code, *numbers, *(f"{angle:.4f}" for angle in angles)])
    path = out / f"neighbours_{slug(subject.name)}.csv"
    write_text(path, stream.getvalue())
    return path


def _draw(subjects: Sequence[Subject], folder: Path) -> list[Path]:
    from figures import angular_separation, latent_norms, nearest_codes
    from figures.style import save

    tables = {subject.name: _separation_columns(subject.geometry) for subject in subjects}
    files = list(save(angular_separation.draw(tables), folder / "angular_separation"))
    histories = {subject.name: subject.history for subject in subjects if subject.history.get("step")}
    if histories:
        files += save(latent_norms.draw(histories, _radius(subjects)), folder / "latent_norms")
    for subject in subjects:
        if subject.pictures is not None:
            figure = nearest_codes.draw(subject.pictures, *_neighbour_arrays(subject), name=subject.name)
            files += save(figure, folder / f"nearest_codes_{slug(subject.name)}")
    return files


def _separation_columns(geometry: LearnedGeometry) -> dict[str, dict[str, np.ndarray]]:
    parts = geometry.subvectors
    return {
        "whole": {"angles": geometry.whole.angles.numpy(), "uniform": geometry.whole.uniform.numpy()},
        "subvector": {
            "angles": torch.cat([part.angles for part in parts]).numpy(),
            "uniform": torch.cat([part.uniform for part in parts]).numpy(),
        },
    }


def _radius(subjects: Sequence[Subject]) -> float | None:
    """Return the norm on the product of spheres where all tables that are on one have the same."""
    found = {(s.geometry.width / s.geometry.size) ** 0.5 for s in subjects if s.geometry.normalise}
    return found.pop() if len(found) == 1 else None


def _neighbour_arrays(subject: Subject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids [r,1+k], angles [r,k], and which neighbours are near in the tokenizer's codebook too [r,k]."""
    assert subject.codebook is not None
    geometry, codes = subject.geometry, subject.shown
    own = geometry.neighbours[codes]
    theirs, _ = nearest_codes(subject.codebook.double().cpu(), own.shape[1])
    shared = (own[:, :, None] == theirs[codes][:, None, :]).any(2)
    return _shown_with_neighbours(geometry).numpy(), geometry.neighbour_angles[codes].numpy(), shared.numpy()
