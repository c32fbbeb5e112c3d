"""C1, from the results of `latentlab collapse`."""

import math
from collections.abc import Mapping
from statistics import fmean

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.intervals import mean_ends
from latentlab.claims.result_files import Bottleneck, Collapse, Score
from latentlab.claims.verdict import LEVEL, Effect, Ends, Judgement, Side, short
from latentlab.measurement import Interval

_PUBLISHED = (6, "pairs")
"""Numbers of the bottleneck and how they are normalised: each pair on a circle."""

_FREE = "none"
"""The same numbers without normalisation."""

LEAST_IMAGES = 8
"""Images from which on a bootstrap over them may decide; the published figure shows one."""

COLLAPSED = 0.5
_BECAUSE = "half as far from its own reconstruction as another view of the image is"


def bottleneck_collapse(evidence: Evidence) -> Judgement:
    """C1: at 6 numbers in pairs on circles continuous latents collapse, by the circles, and ids do not.

    The collapse index of continuous latents lies above `COLLAPSED` and above that of as many numbers without normalisation; that
    of ids lies below `COLLAPSED`, on the fitted views, where ids are only memorised, and on held-out views of the images.
    """
    found = evidence.collapse(LEAST_IMAGES)
    command = found.command or "latentlab collapse"
    continuous, discrete = (_published(found, path, command) for path in ("continuous", "discrete"))
    of = f"of {continuous.tokenizer}"
    effects = [
        _index(f"continuous latents {of}", continuous, continuous.index, "above"),
        _index(f"ids of {discrete.tokenizer}", discrete, discrete.index, "below"),
    ]
    missing = []
    if discrete.index_heldout_views.interval is None:
        missing.append(f"an interval of the collapse index of the ids of {discrete.tokenizer} on held-out views")
    else:
        name = f"ids of {discrete.tokenizer} on held-out views"
        effects.append(_index(name, discrete, discrete.index_heldout_views, "below"))
    by_circles = _by_circles(found, continuous)
    if by_circles:
        effects.append(_difference(of, by_circles))
    else:
        missing.append(f"runs {of} on circles and without normalisation, on the same images")
    notes = [*_notes(found, continuous), *_elsewhere(evidence.collapses_elsewhere())]
    conditions = [(one,) for one in effects]
    return Judgement(conditions, _scale(found, continuous), command, "collapse/results.json", notes, missing)


def _published(found: Collapse, path: str, command: str) -> Bottleneck:
    """Return the tokenizer of one side in the published setting.

    Raises:
        Missing: there is none, or several.
    """
    sides = [s for s in found.summaries if (s.path, s.dims, s.sphere) == (path, *_PUBLISHED)]
    if len(sides) != 1:
        several = f"one {path} tokenizer to judge among {', '.join(one.tokenizer for one in sides)}"
        what = several if sides else f"{path} tokenizer"
        raise Missing(f"collapse/results.json has no {what} at 6 numbers in pairs on circles", command)
    return sides[0]


def _index(what: str, side: Bottleneck, score: Score, where: Side) -> Effect:
    """Return the collapse index of one side."""
    n = side.images if side.unit == "images" else 1
    return Effect(
        name=f"collapse index of the {what}",
        value=score.value,
        ends=_kept_ends(score),
        n=n,
        unit="images",
        least=LEAST_IMAGES,
        threshold=COLLAPSED,
        side=where,
        because=_BECAUSE,
    )


def _by_circles(found: Collapse, side: Bottleneck) -> list[float]:
    """Return by image the index on circles less that without normalisation; of images that have both, means over seeds."""
    circles, free = (_by_image(found, side, sphere) for sphere in (_PUBLISHED[1], _FREE))
    return [circles[image] - free[image] for image in sorted({*circles} & {*free})]


def _by_image(found: Collapse, side: Bottleneck, sphere: str) -> dict[int, float]:
    wanted = (side.path, side.tokenizer, side.dims, sphere)
    runs = [run for run in found.runs if (run.path, run.tokenizer, run.dims, run.sphere) == wanted]
    return {image: fmean(run.index for run in runs if run.subject == image) for image in {r.subject for r in runs}}


def _difference(of: str, differences: list[float]) -> Effect:
    return Effect(
        name=f"collapse index of the continuous latents {of} on circles less that without normalisation, by image",
        value=fmean(differences),
        ends=mean_ends(differences),
        n=len(differences),
        unit="images",
        least=LEAST_IMAGES,
        threshold=0.0,
        side="above",
        because="the loss is due to the circles",
    )


def _kept_ends(score: Score) -> Ends:
    """Return the 95 % interval that was kept; at other levels widened as a normal one would be."""
    from scipy import stats

    def ends(level: float) -> Interval:
        if score.interval is None:
            return -math.inf, math.inf
        wider = float(stats.norm.ppf((1 + level) / 2) / stats.norm.ppf((1 + LEVEL) / 2))
        low, high = score.interval
        return score.value - wider * (score.value - low), score.value + wider * (high - score.value)

    return ends


def _scale(found: Collapse, side: Bottleneck) -> str:
    return f"{side.images} images x {side.seeds} seeds of {found.data.name}, {side.setting}, {found.perceptual}"


def _notes(found: Collapse, continuous: Bottleneck) -> list[str]:
    """Say why held-out views count, and what the latents do without the sphere."""
    notes = [
        "ids are input and label at once, so that on fitted views they are only memorised: held-out views count too"
    ]
    wanted = ("continuous", continuous.tokenizer, _PUBLISHED[0], _FREE)
    free = [s for s in found.summaries if (s.path, s.tokenizer, s.dims, s.sphere) == wanted]
    return [*notes, *(f"without normalisation the continuous index is {short(s.index.value)}" for s in free)]


def _elsewhere(others: Mapping[str, Collapse]) -> list[str]:
    """Say what other tokenizers and images give: the claim is judged on those that both sides have."""
    return [
        f"{other.data.name} ({side.images} images): the index of {side.tokenizer}, {side.path}, {side.setting}, is {side.index} "
        f"(collapse/{name}/results.json)"
        for name, other in others.items()
        for side in other.summaries
        if side.dims == _PUBLISHED[0]
    ]


CLAIMS = (
    Claim(
        "C1",
        "Projected onto a 6-D product of circles, continuous latents collapse and discrete tokens do not",
        "MIND section 3.1, figure 2: LPIPS over training, one image, no numbers",
        bottleneck_collapse,
    ),
)
