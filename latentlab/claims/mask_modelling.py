"""C16, from the table of the study of tokenizers: mask modelling against the plain autoencoder of the same family."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import pandas as pd

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import LEAST_SEEDS, Evidence, Missing
from latentlab.claims.intervals import difference_ends, exponential
from latentlab.claims.study_effects import SOURCE, judgement, opened
from latentlab.claims.verdict import Effect, Judgement, short

MASKED, PLAIN = "mae", "baseline"
"""Clusters that are compared."""

_TRAINING = ["family", "cluster", "tokenizer", "tokenizer_seed"]
"""Columns that name a trained tokenizer, its kind first."""


def mask_modelling(evidence: Evidence) -> Judgement:
    """C16: gFD with mask modelling over that without, in every family that has both; geometric means over trainings.

    A repetition is a trained tokenizer (label and seed); its gFD is the mean of logarithms over generators, their seeds and
    guidance scales, each less the mean of all tokenizers in that cell, so that a missing cell does not count as quality.
    """
    study, target = opened(evidence)
    rows, judge = study.table.rows, target.removeprefix("gfd_")
    families = _families(rows, _logarithms(rows, target))
    pairs = _with_both(families)
    if not pairs:
        what = f"no family in {SOURCE} has tokenizers of both clusters, {MASKED} and {PLAIN}"
        raise Missing(what, study.command)
    conditions = [(_ratio(family, *pair.values),) for family, pair in pairs.items()]
    notes = [
        *(f"{family}: {_counted(pair.masked)} against {_counted(pair.plain)}" for family, pair in pairs.items()),
        *_without_counterpart(families),
        *_reconstruction(rows, f"rfd_{judge}", [*pairs]),
        *_beyond_reconstruction(rows, f"gfd_reconstructions_{judge}", [*pairs]),
    ]
    return judgement(study, conditions, notes)


@dataclass(frozen=True)
class _Family:
    """Trainings of one family: of each its tokenizer and the mean of a column over its rows."""

    masked: list[tuple[str, float]] = field(default_factory=list)
    plain: list[tuple[str, float]] = field(default_factory=list)

    @property
    def values(self) -> tuple[list[float], list[float]]:
        """The means of both sides."""
        return [value for _, value in self.masked], [value for _, value in self.plain]


def _families(rows: pd.DataFrame, values: pd.Series) -> dict[str, _Family]:
    """Return the means of ``values``, one per row, over every masked and plain training, by family."""
    means = values.groupby([rows[name] for name in _TRAINING]).mean().dropna()
    found: dict[str, _Family] = {}
    for (family, cluster, tokenizer, _), value in zip(means.index, means, strict=True):
        one = found.setdefault(str(family), _Family())
        side = {MASKED: one.masked, PLAIN: one.plain}.get(cluster)
        if side is not None:
            side.append((str(tokenizer), float(value)))
    return found


def _with_both(families: Mapping[str, _Family]) -> dict[str, _Family]:
    return {name: one for name, one in families.items() if one.masked and one.plain}


def _logarithms(rows: pd.DataFrame, name: str) -> pd.Series:
    """Return the logarithms of a distance, each less the mean of its cell."""
    logs = np.log(rows[name].where(rows[name] > 0))
    return logs - logs.groupby([rows["generator"], rows["guidance"]]).transform("mean")


def _ratio(family: str, masked: list[float], plain: list[float]) -> Effect:
    return Effect(
        name=f"gFD with mask modelling over gFD of the plain autoencoder ({family})",
        value=math.exp(fmean(masked) - fmean(plain)),
        ends=exponential(difference_ends(masked, plain)),
        n=min(len(masked), len(plain)),
        unit="trained tokenizers of each kind",
        least=LEAST_SEEDS,
        threshold=1.0,
        side="below",
        because="better at all",
    )


def _counted(trainings: Sequence[tuple[str, float]]) -> str:
    """Name the tokenizers, with how many trainings each has where it is not one."""
    times = Counter(name for name, _ in trainings)
    return ", ".join(name if count == 1 else f"{name} x {count}" for name, count in times.items())


def _without_counterpart(families: Mapping[str, _Family]) -> list[str]:
    """Name the masked tokenizers of families without plain ones."""
    alone = {family: one.masked for family, one in families.items() if one.masked and not one.plain}
    return [
        f"{family}: {_counted(masked)} {'has' if len(masked) == 1 else 'have'} no plain counterpart"
        for family, masked in alone.items()
    ]


def _reconstruction(rows: pd.DataFrame, name: str, families: Sequence[str]) -> list[str]:
    """Say how well both kinds reconstruct in each of the ``families``: tokenizers of low fidelity can win on gFD."""
    found = _with_both(_families(rows, rows[name])) if name in rows else {}
    means = {family: [short(fmean(values)) for values in one.values] for family, one in found.items()}
    return [
        f"mean {name} ({family}): {MASKED} {means[family][0]}, {PLAIN} {means[family][1]}"
        for family in families
        if family in means
    ]


def _beyond_reconstruction(rows: pd.DataFrame, name: str, families: Sequence[str]) -> list[str]:
    """Say what the ratio is of the distance to reconstructions, which leaves out what the decoder loses."""
    found = _with_both(_families(rows, _logarithms(rows, name))) if name in rows else {}
    ratios = {family: _ratio(family, *one.values) for family, one in found.items()}
    return [
        f"the same ratio of {name} ({family}), beyond reconstruction: {ratios[family].estimate()}"
        for family in families
        if family in ratios
    ]


CLAIMS = (
    Claim(
        "C16",
        "Mask modelling makes a plain autoencoder's latents better for generation",
        "MAETok, table 1: gFID 24.47 -> 5.78",
        mask_modelling,
    ),
)
