"""C10 to C14, from the ablation grids of MIND. A repetition is a seed; rows are found by the labels of the shipped grids."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import LEAST_SEEDS, Evidence, Missing
from latentlab.claims.intervals import mean_ends
from latentlab.claims.ratios import paired_ratio, ratio
from latentlab.claims.result_files import Grid, Row
from latentlab.claims.verdict import Effect, Judgement, Side, short

_FAILS = 1.5
_FAILS_BECAUSE = "half as far again is failing, published are 2.4 to 5.4 times"
_BLOWN = 6.0
_BLOWN_BECAUSE = "half as long again as 16 numbers of N(0,1) start, published are 2.4 and 3.4 times"


# --- C10 --------------------------------------------------------------------------------------------------------------

_SPHERE, _SMALL = "A sphere, xavier", "B no sphere, xavier"
_NORMAL = ("C no sphere, normal", "D no sphere, normal, more noise")


def sphere_is_needed(evidence: Evidence) -> Judgement:
    """C10: without the sphere rows are `_FAILS` times as far from real images, or those that begin as N(0,1) have grown long.

    Rows that begin small (Xavier) are not said to grow: theirs is the norm of their initialisation.
    """
    grid, rows, command = _rows(evidence, "hypersphere", [_SPHERE, _SMALL, *_NORMAL])
    sphere, small, *normal = rows
    conditions = [(_failing(small, sphere),), *((_failing(row, sphere), _blown_up(row)) for row in normal)]
    norms = ", ".join(f"{row.label} {short(float(np.mean(_norms(row))))}" for row in rows)
    told = [
        f"mean latent norms: {norms}; published: 2, 0.04, 9.68, 13.66",
        "Adam moves a number by at most the sum of its learning rates, so that short training cannot make rows long",
    ]
    return _judgement(grid, "hypersphere", conditions, command, told)


def _failing(row: Row, sphere: Row) -> Effect:
    return ratio(
        f"distance of {row.label} over that on the sphere", row.distances(), sphere.distances(), threshold=_FAILS,
        side="above", because=_FAILS_BECAUSE,
    )  # fmt: skip


def _blown_up(row: Row) -> Effect:
    norms = _norms(row)
    return Effect(
        f"latent norm of {row.label}", float(np.mean(norms)), mean_ends(norms), len(norms), "seeds", LEAST_SEEDS, _BLOWN,
        "above", _BLOWN_BECAUSE,
    )  # fmt: skip


def _norms(row: Row) -> list[float]:
    return [cell.geometry.latent_norm for cell in row.done if cell.geometry]


# --- C11, C12 ---------------------------------------------------------------------------------------------------------

_BEST = "d=16, g=4, K1=0.6"
_OTHER_WIDTHS = ("d=8, g=2, K1=0.6", "d=32, g=8, K1=0.6", "d=64, g=16, K1=0.6", "d=128, g=32, K1=1.0")
_NOISE = (("d=8, g=2, K1=1.0", "d=8, g=2, K1=0.6"), ("d=64, g=16, K1=0.8", "d=64, g=16, K1=0.6"))


def width_and_noise(evidence: Evidence) -> Judgement:
    """C11: every other width, and at equal width the larger noise, is further from real images than d=16 and K1=0.6."""
    pairs = [*((label, _BEST) for label in _OTHER_WIDTHS), *_NOISE]
    grid, _, command = _rows(
        evidence, "embedding-noise", list(dict.fromkeys(label for pair in pairs for label in pair))
    )
    conditions = [(_worse(grid, worse, better),) for worse, better in pairs]
    notes = ["d=128 differs in the noise too, as published"]
    return _judgement(grid, "embedding-noise", conditions, command, notes)


def _worse(grid: Grid, worse: str, better: str) -> Effect:
    first, second = (_row(grid, label).distances() for label in (worse, better))
    return ratio(f"distance at {worse} over that at {better}", first, second, side="above", because="worse at all")


def residual_branch(evidence: Evidence) -> Judgement:
    """C12: with the branch the distance is smaller at d=16 and d=64, and by a larger factor at d=64."""
    labels = [f"d={d}, {what}" for d in (16, 64) for what in ("with", "without")]
    grid, rows, command = _rows(evidence, "residual", labels)
    gains = [
        ratio(f"distance with the branch over that without, d={d}", rows[i].distances(), rows[i + 1].distances())
        for i, d in ((0, 16), (2, 64))
    ]
    more, missing = _more_at_64(rows)
    return _judgement(grid, "residual", [(one,) for one in (*gains, *more)], command, missing=missing)


def _more_at_64(rows: Sequence[Row]) -> tuple[list[Effect], list[str]]:
    """Return the factor of d=64 over the factor of d=16, or in words why there is none.

    Args:
        rows: with and without the branch at 16, then at 64. Both sides of a factor have one seed; factors of the two widths are
            of different models, so that they are compared by Welch's interval.
    """
    name = "factor of the branch at d=64 over its factor at d=16"
    at_16, at_64 = (list(_by_seed(*pair).values()) for pair in (rows[:2], rows[2:]))
    if not at_16 or not at_64:
        return [], [f"{name}: no seed has both rows of d={64 if at_16 else 16}"]
    return [ratio(name, at_64, at_16, because="helps more")], []


# --- C13, C14 ---------------------------------------------------------------------------------------------------------

_SETTINGS = ("d=16, K1=0.6", "d=32, K1=0.6", "d=64, K1=0.6", "d=64, K1=0.8", "d=128, K1=1.0")


def guidance_space(evidence: Evidence) -> Judgement:
    """C13: distance guided on features over that guided on logits, geometric mean over the settings with d above 8.

    Both sides of a pair sample the same trained weights with the same seed, so that ratios are paired.
    """
    labels = [f"{one}, {space}" for one in _SETTINGS for space in ("feature", "logits")]
    grid, rows, command = _rows(evidence, "guidance-space", labels)
    ratios = [_by_seed(*rows[i : i + 2]) for i in range(0, len(rows), 2)]
    seeds = sorted(set.intersection(*(set(one) for one in ratios)))
    if not seeds:
        raise Missing("mind_ablations/guidance-space/results.json has no seed with all of its rows", command)
    means = [math.exp(np.mean([math.log(one[seed]) for one in ratios])) for seed in seeds]
    found = paired_ratio("distance guided on features over that on logits, mean of 5 settings", means, side="above",
                         because="worse at all")  # fmt: skip
    each = ", ".join(
        f"{label} {short(float(np.mean(list(one.values()))))}" for label, one in zip(_SETTINGS, ratios, strict=True)
    )
    return _judgement(grid, "guidance-space", [(found,)], command, [f"by setting: {each}", *_narrow(grid)])


def _narrow(grid: Grid) -> list[str]:
    """Say what the widest spheres of the paper's exception, d=8, give; nothing where they have not been run."""
    told = []
    for setting in ("d=8, K1=0.6", "d=8, K1=1.0"):
        rows = [row for space in ("feature", "logits") for row in grid.rows if row.label == f"{setting}, {space}"]
        ratios = list(_by_seed(*rows).values()) if len(rows) == 2 else []
        if ratios:
            told.append(f"{setting}, excepted: {short(float(np.mean(ratios)))}")
    return told


_SOFT, _NOT_SOFT = "soft 0.3, greedy 0.1", "greedy 0.1"


def sampler_stages(evidence: Evidence) -> Judgement:
    """C14: unguided, greedy lowers the distance; guided, both stages do; unguided, soft raises distance and precision.

    The last is published of a soft stage of 0.3, greedy at the end (table S-1).
    """
    pairs: tuple[tuple[str, str, Side, str], ...] = (
        ("greedy 0.1", "no stages", "below", "helps at all"),
        ("guided, soft 0.1, greedy 0.1", "guided, no stages", "below", "helps at all"),
        (_SOFT, _NOT_SOFT, "above", "costs anything"),
    )
    labels = list(dict.fromkeys(label for pair in pairs for label in pair[:2]))
    grid, rows, command = _rows(evidence, "stages", labels)
    named = dict(zip(labels, rows, strict=True))
    conditions = []
    for first, second, side, because in pairs:
        ratios = _by_seed(named[first], named[second])
        name = f"distance with {first} over that with {second}"
        conditions.append((paired_ratio(name, list(ratios.values()), side=side, because=because),))
    precision = _precision_gain(named[_SOFT], named[_NOT_SOFT])
    absent = [] if precision else ["mind_ablations/stages/results.json holds no precision, which the soft stage gains"]
    conditions += [(precision,)] if precision else []
    notes = ["seeds are draws from one trained model"]
    return _judgement(grid, "stages", conditions, command, notes, absent)


def _precision_gain(soft: Row, none: Row) -> Effect | None:
    """Return precision with the soft stage less that without, by seed; None where it was not measured."""
    values = [{c.seed: c.precision.value for c in row.done if c.precision is not None} for row in (soft, none)]
    gains = [values[0][seed] - values[1][seed] for seed in sorted(set(values[0]) & set(values[1]))]
    if not gains:
        return None
    return Effect(
        f"precision with {_SOFT} less that with {_NOT_SOFT}", float(np.mean(gains)), mean_ends(gains), len(gains), "seeds",
        LEAST_SEEDS, 0.0, "above", "gains at all",
    )  # fmt: skip


# --- shared -----------------------------------------------------------------------------------------------------------


def _rows(evidence: Evidence, name: str, labels: Sequence[str]) -> tuple[Grid, list[Row], str]:
    """Return a grid, these rows of it and the command that made it.

    Raises:
        Missing: it has not been run, or one of the rows is absent or failed with every seed.
    """
    grid = evidence.grid(name)
    command = grid.command or f"latentlab ablate {name}"
    there = {row.label: row for row in grid.rows if row.distances()}
    absent = [label for label in labels if label not in there]
    if absent:
        raise Missing(f"mind_ablations/{name}/results.json has no numbers in row '{absent[0]}'", command)
    return grid, [there[label] for label in labels], command


def _row(grid: Grid, label: str) -> Row:
    return next(row for row in grid.rows if row.label == label)


def _by_seed(first: Row, second: Row) -> dict[int, float]:
    """Return the ratio of the distances of two rows by seed, of the seeds that both have."""
    values = [{cell.seed: cell.distance.value for cell in row.done if cell.distance} for row in (first, second)]
    return {seed: values[0][seed] / values[1][seed] for seed in sorted(set(values[0]) & set(values[1]))}


def _judgement(
    grid: Grid,
    name: str,
    conditions: Sequence[tuple[Effect, ...]],
    command: str,
    notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Judgement:
    what = f"weights {grid.weights}" if grid.weights else f"training configuration {grid.base}"
    scale = f"{what}, {grid.samples:,} samples per row against {grid.reference.name} on {grid.extractor}"
    return Judgement(conditions, scale, command, f"mind_ablations/{name}/results.json", notes, missing)


def _claim(identity: str, text: str, published: str, judge: Callable[[Evidence], Judgement]) -> Claim:
    return Claim(identity, text, f"MIND, {published}", judge)


CLAIMS = (
    _claim(
        "C10",
        "Without the sphere, training fails or latents blow up",
        "table 5: norms 0.04, 9.68, 13.66 and FID 280.78, 194.61, 124.40 without, 2.00 and 52.10 with",
        sphere_is_needed,
    ),
    _claim(
        "C11",
        "d=16 is the sweet spot; a lower noise scale suits the bounded space",
        "table 8: FID 125.40 (d=8), 34.91 (16), 38.95 (32), 43.03 (64), 52.03 (128); more noise 206.19 (8), 44.07 (64)",
        width_and_noise,
    ),
    _claim(
        "C12",
        "The residual sinusoidal branch helps, more at d=64",
        "table 9: FID 34.91 -> 33.91 (d=16), 43.03 -> 40.57 (d=64)",
        residual_branch,
    ),
    _claim(
        "C13",
        "Guidance on logits beats guidance on features (except d=8)",
        "table S-2, logits and features: FID 34.91 and 37.62 (d=16), 38.95 and 42.90 (32), 43.03 and 48.41 (64), 52.03 and "
        "61.24 (128); 125.40 and 122.71 (8)",
        guidance_space,
    ),
    _claim(
        "C14",
        "Greedy last 10 % and multi-stage sampling help; the soft stage trades FID for precision",
        "tables S-1 and 6: greedy 26.06 -> 25.75; stages 11.38 -> 12.00 unguided (worse), 6.42 -> 2.64 guided; soft 0.3 "
        "(MIND-S) 34.76 -> 40.72 at precision 0.43 -> 0.48",
        sampler_stages,
    ),
)
