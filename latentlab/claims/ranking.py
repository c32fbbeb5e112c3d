"""C2 and C7: measurements of latents ranked by how strongly they go with gFD.

Only what the publication ranked counts, whatever else a study measured, and all over the same tokenizers. A measurement is as
strong as the size of its mean correlation over cells: one whose sign changes between generators predicts nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.statistic import Statistic, average, place
from latentlab.claims.study_cells import StudyCells, cell_name
from latentlab.claims.study_effects import (
    PREDICTS,
    PREDICTS_BECAUSE,
    SOURCE,
    each,
    effect,
    given_decoder,
    judgement,
    known,
    level_in,
    opened,
    plain,
)
from latentlab.claims.verdict import Effect, Judgement, short

RANKED = (
    "m_viv", "m_lnc", "m_linear_probe", "m_lds", "m_cds", "m_srss", "m_sec", "m_ifid", "m_uniformity", "m_equivariance",
)  # fmt: skip
"""What Diffusing in the Right Space ranks in figure 4."""

_WEAK = ("m_equivariance", "m_uniformity", "m_ifid")
_FEWEST = 4
"""Measurements of which the first place, a quarter, lies within the upper third."""


def stable_predictor(evidence: Evidence) -> Judgement:
    """C2: by |mean rank correlation| with gFD VIV is in the upper third of what was ranked, and it predicts in every cell.

    Stable is judged as a level that is reached in every cell, not as a small spread over cells.
    """
    study, target = opened(evidence, "m_viv")
    ranking = _Ranking.of(study, target)
    if "m_viv" in ranking.uncounted:
        raise Missing(f"no correlation in {SOURCE}: {ranking.uncounted['m_viv']}", study.command)
    if len(ranking.found) < _FEWEST:
        what = f"{SOURCE} has {len(ranking.found)} measurements, too few for an upper third"
        raise Missing("; ".join([what, *ranking.not_counted()]), study.command)
    sizes = ranking.sizes()
    rank = place(sizes["m_viv"], [one for name, one in sizes.items() if name != "m_viv"])
    third = f"the upper third of {len(sizes)}"
    upper = effect("place of VIV by |mean r| with gFD, as a share of the ranked", rank, 1 / 3, "below", third)
    every, missing = _viv_in_every_cell(ranking.study, target)
    notes = [
        *ranking.notes(),
        *given_decoder(ranking.study, target, ["m_viv"]),
        *_other_judges(ranking.study, "m_viv"),
        "stable is judged as a level in every cell, not as a spread over cells",
    ]
    return judgement(ranking.study, each([upper, *every]), notes, missing)


def _viv_in_every_cell(study: StudyCells, target: str) -> tuple[list[Effect], list[str]]:
    """Return the correlation with gFD in each cell, and in words which cells have none and why."""
    effects, missing = [], []
    for generator, guidance in study.cells:
        cell = study.only(generator, guidance)
        found, name = cell.correlation("m_viv", target), f"r of VIV with gFD, {cell_name(generator, guidance)}"
        if found.n:
            effects.append(effect(name, found, PREDICTS, "above", PREDICTS_BECAUSE))
        else:
            missing.append(f"{name}: {cell.why_none('m_viv', target)}")
    return effects, missing


def _other_judges(study: StudyCells, name: str) -> list[str]:
    """Say what the other judges' distances give."""
    others = {target: study.judged_fairly(target).correlation(name, target) for target in study.targets[1:]}
    told = [f"{target} {short(found.value)}" for target, found in others.items() if found.n]
    return [f"mean r by other judges: {', '.join(told)}"] if told else []


def predict_less(evidence: Evidence) -> Judgement:
    """C7: by |mean rank correlation| the three are below the other ranked measurements, equivariance below each one."""
    study, target = opened(evidence, *_WEAK)
    ranking = _Ranking.of(study, target, _WEAK)
    for name in _WEAK:
        known(ranking.of_all[name], ranking.study, name, target, *level_in(study, name, target))
    sizes = ranking.sizes()
    others = [one for name, one in sizes.items() if name not in _WEAK]
    if not others:
        what = f"{SOURCE} has no other measurements to compare with"
        raise Missing("; ".join([what, *ranking.not_counted()]), study.command)
    gap = average(others) - average([sizes[name] for name in _WEAK])
    less = effect(
        "mean of |mean r| over the other measurements less that over the three", gap, 0.0, "above", "less is less"
    )
    last = sizes["m_equivariance"]
    least = [
        effect(f"|mean r| of {plain(name)} less that of equivariance", one - last, 0.0, "above", "it is last")
        for name, one in sizes.items()
        if name != "m_equivariance"
    ]
    notes = [
        *ranking.notes(),
        *given_decoder(ranking.study, target, _WEAK),
        "continuity is taken to be iFID",
    ]
    return judgement(ranking.study, each([less, *least]), notes)


@dataclass(frozen=True)
class _Ranking:
    """Correlations of the ranked measurements with ``target``, of iFID given the judge's rFD where that is known.

    Attributes:
        study: its tokenizers that have every one that counts.
        target: distance of samples.
        of_all: those that count; some may have no correlation.
        unlisted: those that do not, and why.
    """

    study: StudyCells
    target: str
    of_all: Mapping[str, Statistic]
    unlisted: Mapping[str, str]

    @classmethod
    def of(cls, study: StudyCells, target: str, about: Sequence[str] = ()) -> "_Ranking":
        """Correlate what enough tokenizers have, and what the claim is ``about``.

        Raises:
            Missing: no tokenizer has all of it.
        """
        unlisted = {name: why for name, why in study.unlisted.items() if name in RANKED and name not in about}
        counted = [name for name in RANKED if name in study.measurements or name in about]
        level = [other for name in counted for other in level_in(study, name, target)]
        whole = study.complete([*counted, *level])
        if not whole.tokenizers:
            raise Missing(f"no tokenizer in {SOURCE} has all of {', '.join([*counted, *level])}", study.command)
        return cls(whole, target, {name: _level(whole, name, target) for name in counted}, unlisted)

    @property
    def found(self) -> dict[str, Statistic]:
        """Those that have a correlation."""
        return {name: one for name, one in self.of_all.items() if one.n}

    @property
    def uncounted(self) -> dict[str, str]:
        """Ranked measurements that do not count or have no correlation, and why."""
        without = [name for name, one in self.of_all.items() if not one.n]
        level = {name: level_in(self.study, name, self.target) for name in without}
        return {**self.unlisted, **{name: self.study.why_none(name, self.target, *level[name]) for name in without}}

    def sizes(self) -> dict[str, Statistic]:
        """Return |mean over cells| of each."""
        return {name: one.mean().map(np.abs) for name, one in self.found.items()}

    def not_counted(self) -> list[str]:
        """Say what does not count."""
        return [f"not counted: {', '.join(self.uncounted.values())}"] if self.uncounted else []

    def notes(self) -> list[str]:
        """List all correlations, those that do not count apart."""
        return [f"mean r with gFD: {_listed(self.found)}", *self._beside(), *self._raw(), *self.not_counted()]

    def _beside(self) -> list[str]:
        others = [name for name in self.study.measurements if name not in RANKED]
        found = {name: self.study.correlation(name, self.target) for name in others}
        there = {name: one for name, one in found.items() if one.n}
        return [f"measured beside them, not ranked by the publication: {_listed(there)}"] if there else []

    def _raw(self) -> list[str]:
        """Say what a correlation that holds the judge's rFD level would be without."""
        return [
            f"r of {plain(name)} is given {level[0]}, as gFD contains what the decoder loses too, raw "
            f"{short(self.study.correlation(name, self.target).value)}"
            for name in self.found
            if (level := level_in(self.study, name, self.target))
        ]


def _level(study: StudyCells, name: str, target: str) -> Statistic:
    """Return the correlation of a measurement with ``target`` among tokenizers that are level in `level_in`."""
    given = level_in(study, name, target)
    return study.partial_correlation(name, target, *given) if given else study.correlation(name, target)


def _listed(found: Mapping[str, Statistic]) -> str:
    """List measurements with their mean correlation, the strongest first."""
    order = sorted(found, key=lambda name: (-abs(found[name].value), name))
    return ", ".join(f"{plain(name)} {short(found[name].value)}" for name in order)


CLAIMS = (
    Claim(
        "C2",
        "VIV is among the most stable predictors of gFID",
        "Diffusing in the Right Space: Pearson 0.87 (SiT-B, 43 tokenizers)",
        stable_predictor,
    ),
    Claim(
        "C7",
        "Equivariance, uniformity and continuity predict less; equivariance least",
        "Diffusing in the Right Space: figure 4, no numbers",
        predict_less,
    ),
)
