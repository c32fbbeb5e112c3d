"""C9 and C18 from comparisons of generators, C15 from a grid of guidance intervals, C17 from evaluations of students."""

from collections.abc import Sequence

import numpy as np

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.ratios import paired_ratio, ratio
from latentlab.claims.result_files import Cell, Comparison, Entrant, Evaluated, Grid
from latentlab.claims.verdict import Effect, Judgement, short

_NAMES = {"mind": "MIND", "sit": "SiT", "dit": "DiT"}

_LEVEL_FLOORS = 1.2
"""Reconstructions within a fifth of each other count as equally good, as those of the embedded tokenizers do."""

_SAME_EPOCHS = 1.02
"""Trainings whose numbers of images differ by no more than this factor count as equally long."""


# --- C9 ---------------------------------------------------------------------------------------------------------------


def order_of_generators(evidence: Evidence) -> Judgement:
    """C9: distance of MIND over SiT, and of SiT over DiT, unguided; a repetition is a training.

    The comparison spends equal compute, the claim speaks of epochs: of a pair the better one is taken where it has had no more
    epochs than the worse one (`_with_no_more_epochs`), at the end of training if that is so there.
    """
    found = evidence.comparison("generators")
    command = found.command or "latentlab study generators"
    first = {kind: next((one for one in found.generators if one.kind == kind), None) for kind in _NAMES}
    entrants = {kind: one for kind, one in first.items() if one is not None and one.scores()}
    absent = [_NAMES[kind] for kind in _NAMES if kind not in entrants]
    if absent:
        raise Missing(f"generators/results.json has no unguided distance of {', '.join(absent)}", command)
    pairs = [(entrants[a], entrants[b]) for a, b in (("mind", "sit"), ("sit", "dit"))]
    conditions = [(_with_no_more_epochs(*pair),) for pair in pairs]
    turned = [
        f"equal epochs: {effect.name} is {short(effect.value)}, at the ends of training {short(_over(*pair).value)}"
        for (effect,), pair in zip(conditions, pairs, strict=True)
        if (effect.value < 1) != (_over(*pair).value < 1)
    ]
    sizes = [one.parameters for one in entrants.values()]
    scale = (
        f"{min(sizes) / 1e6:.3g} to {max(sizes) / 1e6:.3g} M parameters, equal training compute, {found.samples:,} samples "
        f"against {found.reference.name} on {found.extractor}"
    )
    notes = [*_image_intervals(entrants), *_floors(found, entrants)]
    return Judgement(conditions, scale, command, "generators/results.json", notes, turned)


def _with_no_more_epochs(first: Entrant, second: Entrant) -> Effect:
    """Return the ratio of two distances, the better generator at the last point where it saw no more images than the other."""
    ends = _over(first, second)
    better, worse = (first, second) if ends.value < 1 else (second, first)
    if better.steps is None or worse.steps is None:
        return ends
    allowed = int(_SAME_EPOCHS * worse.steps * worse.batch_size / better.batch_size)
    early = better.scores_by(allowed) if better.steps > allowed else None
    if early is None or not early[1]:
        return ends
    points = {better.label: early, worse.label: (worse.steps, worse.scores())}
    (step, scores), (other_step, other_scores) = points[first.label], points[second.label]
    name = f"distance of {first.label} after {step:,} steps over that of {second.label} after {other_step:,}, unguided"
    values = [[one.value for one in of_one] for of_one in (scores, other_scores)]
    return ratio(name, *values, unit="trainings of each")


def _over(first: Entrant, second: Entrant) -> Effect:
    values = [[score.value for score in one.scores()] for one in (first, second)]
    return ratio(f"distance of {first.label} over that of {second.label}, unguided", *values, unit="trainings of each")


def _image_intervals(entrants: dict[str, Entrant]) -> list[str]:
    """Say what intervals over images are and are not, where there is one training each."""
    if min(len(one.scores()) for one in entrants.values()) > 1:
        return []
    told = ", ".join(f"{one.label} {one.scores()[0]}" for one in entrants.values())
    return [f"intervals over images, which say nothing about another training: {told}"]


def _floors(found: Comparison, entrants: dict[str, Entrant]) -> list[str]:
    """Say what perfect latents of each tokenizer would score: where generators start from."""
    told: dict[str, float] = {}
    for one in entrants.values():
        scores = found.floors.get(f"reconstructions of {one.tokenizer}", {})
        if score := next((s for name, s in scores.items() if name.startswith(("fd_", "fid"))), None):
            told[str(one.tokenizer)] = score.value
    if not told:
        return []
    listed = ", ".join(f"{tokenizer} {short(value)}" for tokenizer, value in told.items())
    level = max(told.values()) <= _LEVEL_FLOORS * min(told.values())
    return [
        f"reconstructions alone have {listed}: generators of different tokenizers {'' if level else 'do not '}start level"
    ]


# --- C15 --------------------------------------------------------------------------------------------------------------

_NONE, _WHOLE, _PART = "not guided", "guided throughout", "guided in [0.2, 0.6]"
_KEEPS = 1.05


def guidance_interval(evidence: Evidence) -> Judgement:
    """C15: guided in the released interval only, the distance is at most `_KEEPS` times that of guidance throughout.

    Rows draw with the same seed from the same weights. Where guidance throughout is no better than none there is nothing to keep.
    That evaluations are saved follows from the settings, and is told.
    """
    grid = evidence.own_grid("guidance_interval")
    command = grid.command or "latentlab ablate"
    cells = {label: _cells(grid, label) for label in (_NONE, _WHOLE, _PART)}
    seeds = sorted(set.intersection(*(set(one) for one in cells.values())))
    if not seeds:
        labels = ", ".join(f"'{label}'" for label in cells)
        raise Missing(f"guidance_interval/results.json has no seed with all of its rows {labels}", command)
    none, whole, part = ([cells[label][seed] for seed in seeds] for label in cells)
    quality = paired_ratio("distance guided in the interval over that guided throughout", _ratios(part, whole),
                           threshold=_KEEPS, because="another seed moves a distance by as much")  # fmt: skip
    helps = paired_ratio(
        "distance guided throughout over that not guided", _ratios(whole, none), because="helps at all"
    )
    absent = [] if helps.speaks_for() else [f"a gain by guidance, which the interval could keep: {helps.sentence()}"]
    saved = np.mean([_evaluations(a) / _evaluations(b) for a, b in zip(part, whole, strict=True)])
    scale = (
        f"weights {grid.weights}, {grid.samples:,} samples per row against {grid.reference.name} on {grid.extractor}"
    )
    notes = [
        f"{_PART} takes {short(float(saved))} times the evaluations",
        f"distance guided throughout over that not guided: {short(helps.value)}",
        "seeds are draws from one trained model",
    ]
    return Judgement([(quality,)], scale, command, "guidance_interval/results.json", notes, absent)


def _ratios(first: Sequence[Cell], second: Sequence[Cell]) -> list[float]:
    return [_distance(a) / _distance(b) for a, b in zip(first, second, strict=True)]


def _cells(grid: Grid, label: str) -> dict[int, Cell]:
    """Return the cells of a row that hold both numbers, by seed."""
    rows = [row for row in grid.rows if row.label == label]
    return {cell.seed: cell for row in rows for cell in row.done if cell.distance and cell.sampling}


def _distance(cell: Cell) -> float:
    assert cell.distance is not None
    return cell.distance.value


def _evaluations(cell: Cell) -> float:
    assert cell.sampling is not None
    return cell.sampling.evaluations_per_image


# --- C17 --------------------------------------------------------------------------------------------------------------

_REACHES = 1.1
_EVALUATE = (
    "latentlab evaluate --samples IMAGES --reference fashion:train --out studies/distillation/one_step-SEED (and "
    "reconstructions); no command of this version distils"
)


def one_step(evidence: Evidence) -> Judgement:
    """C17: distance of one-step students over that of the tokenizer's reconstructions, on every kind of features.

    Students are trained on the features they are first judged by, so that a second kind is needed. A repetition is a student.
    """
    students, bound = evidence.evaluations("one_step*"), evidence.evaluations("reconstructions")
    if not students or not bound:
        absent = "one_step*" if not students else "reconstructions"
        raise Missing(f"distillation/{absent}/results.json is not there", _EVALUATE)
    limit = bound["reconstructions"]
    names = sorted(set(limit.distances()).intersection(*(one.distances() for one in students.values())))
    if len(names) < 2:
        what = f"distillation holds {len(names)} kinds of features that all were judged by, and at least 2 are needed"
        raise Missing(what, _EVALUATE)
    conditions = [(_reached(name, list(students.values()), limit),) for name in names]
    n = min(one.distances()[name].n for one in students.values() for name in names)
    command = next(iter(students.values())).command or _EVALUATE
    return Judgement(conditions, f"{len(students)} students, {n:,} samples", command, "distillation/*/results.json")


def _reached(name: str, students: list[Evaluated], limit: Evaluated) -> Effect:
    """Return the ratio on one kind of features.

    Raises:
        Missing: it was measured on unequal numbers of images.
    """
    bound, found = limit.distances()[name], [one.distances()[name] for one in students]
    if {one.n for one in found} != {bound.n}:
        what = f"{name} of distillation/*/results.json is of unequal numbers of images, which do not compare"
        raise Missing(what, _EVALUATE)
    ratios = [one.value / bound.value for one in found]
    told = f"{name} of one-step students over that of the tokenizer's reconstructions"
    return paired_ratio(told, ratios, threshold=_REACHES, because="a tenth more", unit="students")


# --- C18 --------------------------------------------------------------------------------------------------------------


def masking_schedule(evidence: Evidence) -> Judgement:
    """C18: distance of masked generators with the exp schedule over that with linear and with cosine, all with w(t)=1."""
    found = evidence.comparison("masking_schedules", "comparison.yaml")
    command = found.command or "latentlab study generators"
    masked = [one for one in found.generators if one.kind == "emigm" and one.scores()]
    weighted = [one for one in masked if one.train.get("model.weighting", "one") == "one"]
    by_schedule = {str(one.train.get("model.schedule")): one for one in weighted}
    absent = [name for name in ("exp", "linear", "cosine") if name not in by_schedule]
    if absent:
        what = f"masking_schedules/results.json has no distance of a masked generator with model.schedule={absent[0]}"
        raise Missing(what, command)
    conditions = [(_over(by_schedule["exp"], by_schedule[name]),) for name in ("linear", "cosine")]
    scale = (
        f"{by_schedule['exp'].parameters / 1e6:.3g} M parameters, {found.samples:,} samples against {found.reference.name} "
        f"on {found.extractor}"
    )
    return Judgement(conditions, scale, command, "masking_schedules/results.json")


CLAIMS = (
    Claim(
        "C9",
        "At equal parameters and epochs MIND beats SiT beats DiT without guidance",
        "MIND, table 1: FID 22.73, 33.02, 43.47 (B) and 40.72, 57.64, 68.40 (S)",
        order_of_generators,
    ),
    Claim(
        "C15",
        "Guidance only in an interval keeps quality and saves evaluations",
        "MIND, table S-4 (intervals of its system-level results); eMIGM, section 5.3: 1.2 instead of 2 evaluations per step",
        guidance_interval,
    ),
    Claim(
        "C17",
        "One-step distillation reaches the tokenizer's own limit",
        "MIND, table 3: FID 0.98 against 0.97 +- 0.013, trained on the judged features",
        one_step,
    ),
    Claim(
        "C18",
        "The exp schedule with w(t)=1 beats linear and cosine for masked generation",
        "eMIGM, figures 2 and 3, table 9: FID 11.90 (exp), 24.96 (linear), 12.39 (cosine), 9.91 (log-exp) after 400 epochs",
        masking_schedule,
    ),
)
