"""C1, from the results of `latentlab collapse`."""

import math
from collections.abc import Mapping

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.result_files import Bottleneck, Collapse, Score
from latentlab.claims.verdict import LEVEL, Effect, Ends, Judgement, Side, short
from latentlab.measurement import Interval

_PUBLISHED = (6, "pairs")
"""Numbers of the bottleneck and how they are normalised: each pair on a circle."""

LEAST_IMAGES = 8
"""Images from which on a bootstrap over them may decide; the published figure shows one."""

COLLAPSED = 0.5
_BECAUSE = "half as far from its own reconstruction as another view of the image is"


def bottleneck_collapse(evidence: Evidence) -> Judgement:
    """C1: at 6 numbers in pairs on circles the collapse index of continuous latents lies above `COLLAPSED`, that of ids below."""
    found = evidence.collapse(LEAST_IMAGES)
    command = found.command or "latentlab collapse"
    published = {s.path: s for s in found.summaries if (s.dims, s.sphere) == _PUBLISHED}
    absent = [path for path in ("continuous", "discrete") if path not in published]
    if absent:
        raise Missing(f"collapse/results.json has no {absent[0]} tokenizer at 6 numbers in pairs on circles", command)
    continuous, discrete = published["continuous"], published["discrete"]
    sides = ((_index("continuous latents", continuous, "above"),), (_index("ids", discrete, "below"),))
    notes = [*_notes(found, discrete), *_elsewhere(evidence.collapses_elsewhere())]
    return Judgement(sides, _scale(found, continuous), command, "collapse/results.json", notes)


def _index(what: str, side: Bottleneck, where: Side) -> Effect:
    """Return the collapse index of one side."""
    n = side.images if side.unit == "images" else 1
    return Effect(
        name=f"collapse index of the {what} of {side.tokenizer}",
        value=side.index.value,
        ends=_kept_ends(side.index),
        n=n,
        unit="images",
        least=LEAST_IMAGES,
        threshold=COLLAPSED,
        side=where,
        because=_BECAUSE,
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


def _notes(found: Collapse, discrete: Bottleneck) -> list[str]:
    """Say what the ids' advantage is worth, and what the sphere does."""
    notes = [
        "ids are input and label at once, so that on fitted views they are only memorised: on fresh views of the images "
        f"their index is {short(discrete.index_heldout_views.value)}"
    ]
    free = [s for s in found.summaries if (s.path, s.dims, s.sphere) == ("continuous", _PUBLISHED[0], "none")]
    if free:
        notes.append(f"without normalisation the continuous index is {short(free[0].index.value)}")
    return notes


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
