"""The columns of a study's table: what each means, and which cell of a row gives it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from analyses.sensitivity import HEADLINE_LEVEL
from latentlab.measurement import Direction
from latentlab.quality.names import plain_name
from latentlab.registry import card_of
from latentlab.study.table import Column, Role

IDENTITY = (
    Column("tokenizer", "identity", "Label of the tokenizer."),
    Column("tokenizer_seed", "identity", "Seed of its training."),
    Column("cluster", "identity", "Kind of regulariser."),
    Column("family", "identity", "Architecture of the tokenizer."),
    Column("control", "identity", "Transformation of the latents that made it out of another tokenizer."),
    Column("control_of", "identity", "The other tokenizer."),
    Column("held_out", "identity", "Whether it is kept from fitting, for validation."),
    Column("generator", "identity", "Label of the generator."),
    Column("generator_seed", "identity", "Seed of its training and of the draws."),
    Column("guidance", "identity", "Scale of classifier-free guidance; 1 is none."),
)

_N_SAMPLES = Column("n_samples", "count", "Drawn images.")
_N_LATENTS = Column("n_latents", "count", "Held-out latents that measurements were made of; some take a part of them.")

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Value:
    """One value of a row: a column with its number and, where there is one, its interval."""

    column: Column
    value: float
    interval: tuple[float, float] | None = None


def values_of(role: str, result: Results) -> Iterator[Value]:
    """Yield what the results of a cell put into a row.

    Args:
        role: what the cell is to the row, as in `Row.cells`.
        result: what its stage returned.
    """
    stage, _, what = role.partition(" ")
    makers = {
        "held_out": lambda: iter([Value(_N_LATENTS, result["n"])]),
        "measure": lambda: _measured(what, result),
        "reconstruct": lambda: _reconstructed(result),
        "reconstruction_distance": lambda: _of_judge(what, result, RECONSTRUCTION),
        "decoder": lambda: _decoder(result),
        "evaluate": lambda: _of_judge(what, result, SAMPLES),
        "latent_distance": lambda: _plainly(result, LATENTS),
        "train_generator": lambda: _loss(result),
        "trajectories": lambda: _paths(result),
        "sample": lambda: iter([Value(_N_SAMPLES, result["n"])]),
    }
    if stage in makers:
        yield from makers[stage]()


def _measured(name: str, result: Results) -> Iterator[Value]:
    """Yield the headline of a measurement and its companions; nothing where the latents cannot have it."""
    if result["refused"]:
        return
    card = card_of(name)
    meaning = f"{card.title}: {card.summary} ({result['variant']})."
    column = Column(f"m_{name}", "measurement", meaning, result["unit"], result["direction"])
    yield Value(column, _number(result["value"]), _interval(result["interval"]))
    for companion, told in result["companions"].items():
        also = Column(f"m_{name}.{companion}", "measurement", f"{companion}, beside {card.title}.", "", _way(companion))
        yield Value(also, _number(told["value"]), _interval(told["interval"]))


def _way(companion: str) -> Direction:
    """Return which way a companion is easier: of likelihoods MAETok says so (arXiv 2502.03444, figure 2), of others nobody."""
    return "lower" if companion.startswith("held-out NLL") else "none"


SCORES: dict[str, tuple[str, str, Direction]] = {
    "psnr": ("Peak signal-to-noise ratio of reconstructions of held-out images.", "dB", "higher"),
    "ssim": ("Structural similarity of reconstructions of held-out images.", "", "higher"),
    "st_lpips": ("Perceptual distance ST-LPIPS of reconstructions of held-out images.", "", "lower"),
    "codebook_usage": ("Share of the codes that occur on held-out images.", "", "none"),
    "perplexity": ("Number of equally frequent codes with the entropy of those on held-out images.", "codes", "none"),
}


def _reconstructed(result: Results) -> Iterator[Value]:
    for name, told in result["scores"].items():
        meaning, unit, better = SCORES.get(name, (f"{name} of reconstructions of held-out images.", "", "none"))
        yield Value(
            Column(name, "reconstruction", meaning, unit, better), _number(told["value"]), _interval(told["interval"])
        )


class _Told(NamedTuple):
    """What a column means, that cells name as the table does."""

    role: Role
    meaning: str
    better: Direction
    unit: str = ""


_SQUARED = "squared distance of features"
RECONSTRUCTION = {
    "rfd": _Told(
        "reconstruction", "Frechet distance of reconstructed training images to the training images, by {judge}.", "lower",
        _SQUARED,
    ),
}  # fmt: skip
SAMPLES = {
    "gfd": _Told("quality", "Frechet distance of drawn images to the training images, by {judge}.", "lower", _SQUARED),
    "gfd_reconstructions": _Told(
        "quality", "Frechet distance of drawn images to the tokenizer's reconstructions of training images, by {judge}.", "lower",
        _SQUARED,
    ),
    "precision": _Told("quality", "Share of drawn images among real ones, by {judge}.", "higher"),
    "recall": _Told("quality", "Share of real images among drawn ones, by {judge}.", "higher"),
}  # fmt: skip
LATENTS = {
    "fd_latents": _Told(
        "quality", "Frechet distance of drawn latents to those of training images, per channel normalised.", "lower"
    ),
    "fd_latents_floor": _Told(
        "floor", "The same distance of as many real latents: what the number of samples alone gives.", "none"
    ),
}


def _of_judge(judge: str, result: Results, columns: Mapping[str, _Told]) -> Iterator[Value]:
    """Yield columns ``NAME_<judge>``, whose name in the results ends with the judge's plain name."""
    for name, told in columns.items():
        plain = f"{name}_{plain_name(judge)}"
        yield from _plainly(result, {plain: told._replace(meaning=told.meaning.format(judge=judge))})


def _plainly(result: Results, columns: Mapping[str, _Told]) -> Iterator[Value]:
    """Yield the columns that the results name as they are."""
    for name, told in columns.items():
        if result.get(name) is not None:
            ends = result.get(f"{name}_low"), result.get(f"{name}_high")
            column = Column(name, told.role, told.meaning, told.unit, told.better)
            yield Value(column, _number(result[name]), _interval(ends))


_DISTURBED = {
    "image": ("Root mean square change of decoded pixels", "pixels in [-1,1]"),
    "perceptual": ("Mean ST-LPIPS of the change of decoded images", "ST-LPIPS"),
    "feature": ("Root mean square change of the judge's features of decoded images", "spread of the features"),
}


def _decoder(result: Results) -> Iterator[Value]:
    """Yield the headline and, by kind of change and level, columns such as ``decoder_image_0.1``."""
    yield from _plainly(result, {"decoder_sensitivity": _disturbed("image", f"{HEADLINE_LEVEL:g}")})
    for name in result:
        start, _, level = name.rpartition("_")
        kind = start.removeprefix("decoder_")
        if kind in _DISTURBED and _is_number(level):
            yield from _plainly(result, {name: _disturbed(kind, level)})


def _disturbed(kind: str, level: str) -> _Told:
    change, unit = _DISTURBED[kind]
    noise = f"noise of {level} channel deviations on the latents"
    return _Told("decoder", f"{change} under {noise}, divided by {level}.", "lower", f"{unit} per channel deviation")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _loss(result: Results) -> Iterator[Value]:
    column = Column("held_out_loss", "quality", "Loss of the generator on latents of held-out images.", "", "lower")
    yield Value(column, _number(result["held_out_loss"]))


PATHS: dict[str, tuple[str, Direction]] = {
    "straightness": ("Mean cosine between steps that follow each other on unguided sampling paths.", "higher"),
    "efficiency": ("Distance between the ends of unguided sampling paths, divided by their length.", "higher"),
    "length_ratio": ("Mean over time of the length of steps, in units of those of a straight path.", "lower"),
    "step_variance_correlation": (
        "Correlation over time of step length and irreducible variance of the velocity.",
        "none",
    ),
}


def _paths(result: Results) -> Iterator[Value]:
    for name, told in result["paths"].items():
        meaning, better = PATHS[name]
        yield Value(
            Column(name, "trajectory", meaning, "", better), _number(told["value"]), _interval(told["interval"])
        )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _interval(ends: Any) -> tuple[float, float] | None:
    if ends is None or any(end is None for end in ends):
        return None
    return float(ends[0]), float(ends[1])
