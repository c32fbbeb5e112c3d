"""C16, from the table of the study of tokenizers: mask modelling against the plain autoencoder of the same family."""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd

from latentlab.claims.claim import Claim
from latentlab.claims.diffusability import SOURCE, judgement, opened
from latentlab.claims.evidence import LEAST_SEEDS, Evidence, Missing
from latentlab.claims.intervals import difference_ends, exponential
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
    rows = study.table.rows
    logs = np.log(rows[target].where(rows[target] > 0))
    centred = logs - logs.groupby([rows["generator"], rows["guidance"]]).transform("mean")
    pairs = _by_family(rows.assign(log=centred), "log")
    if not pairs:
        what = f"no family in {SOURCE} has tokenizers of both clusters, {MASKED} and {PLAIN}"
        raise Missing(what, study.command)
    effects = [_ratio(family, *both) for family, both in pairs.items()]
    return judgement(study, effects, _reconstruction(rows, target.replace("gfd_", "rfd_"), [*pairs]))


def _by_family(rows: pd.DataFrame, name: str) -> dict[str, tuple[list[float], list[float]]]:
    """Return the means of a column over the rows of every training, masked and plain ones, of the families that have both."""
    means = rows.groupby(_TRAINING)[name].mean().dropna().reset_index()
    kinds = {kind: [float(value) for value in one[name]] for kind, one in means.groupby(["family", "cluster"])}
    both = {family: (kinds.get((family, MASKED), []), kinds.get((family, PLAIN), [])) for family in means["family"]}
    return {str(family): pair for family, pair in sorted(both.items()) if all(pair)}


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


def _reconstruction(rows: pd.DataFrame, name: str, families: Sequence[str]) -> list[str]:
    """Say how well both kinds reconstruct in each of the ``families``: tokenizers of low fidelity can win on gFD."""
    found = _by_family(rows, name) if name in rows else {}
    return [
        f"mean {name} ({family}): {MASKED} {short(fmean(masked))}, {PLAIN} {short(fmean(plain))}"
        for family, (masked, plain) in found.items()
        if family in families
    ]


CLAIMS = (
    Claim(
        "C16",
        "Mask modelling makes a plain autoencoder's latents better for generation",
        "MAETok, table 1: gFID 24.47 -> 5.78",
        mask_modelling,
    ),
)
