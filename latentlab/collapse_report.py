"""What the runs of a collapse study say: one line per tokenizer and setting, and a verdict computed from them.

The collapse index of a run is the perceptual distance from the bottlenecked decode to the tokenizer's own reconstruction,
divided by the distance between its reconstructions of different views of the image: 0 when nothing is lost, 1 when what comes
out is no more like its own view than like another one. From `COLLAPSED` on it is called a collapse.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analyses.bottleneck import CODES
from analyses.intervals import bootstrap_means, percentile_interval
from analyses.positions import patch_width
from latentlab.files import write_text
from latentlab.measurement import Estimate, Interval
from latentlab.report_table import markdown_row, print_tables

COLLAPSE_SCHEMA_VERSION = 1
"""Version of the form of a study's ``results.json``; raised when a key changes its meaning or disappears."""

COLLAPSED = 0.5
"""Collapse index from which on something is called a collapse: half as far as another view of the image."""

_FEW = 8
"""Fewer images than this give a rough interval."""

PUBLISHED_PARAMETERS = {"continuous": 196_592, "discrete": 196_608}
"""Of MIND's bottlenecks: 6 numbers, positions of 16 numbers, 16,384 codes (see `analyses.bottleneck`)."""

_NETWORKS = {
    "lpips": "LPIPS on AlexNet",
    "lpips_vgg": "LPIPS on VGG-16",
    "st_lpips": "ST-LPIPS on AlexNet",
    "st_lpips_vgg": "ST-LPIPS on VGG-16",
}
"""Perceptual networks by the name of `latentlab.quality.perceptual`."""

CLAIM = "projected onto a product of circles, continuous latents collapse and discrete tokens do not"


@dataclass(frozen=True)
class Summary:
    """All runs of one tokenizer and setting at the end of training; means over images of means over seeds.

    Attributes:
        path: ``continuous`` or ``discrete``.
        tokenizer: its name.
        setting: the bottleneck in words; ``dims`` and ``sphere`` say it in values.
        parameters: of one bottleneck.
        images: number of images.
        seeds: runs of each.
        unit: what the intervals are over: ``images``, or ``seeds`` when there is one image, or ``nothing``.
        index: collapse index on the fitted views.
        index_heldout_views: the same for fresh views of the same image, over the same denominator.
        index_heldout_images: the same for views of other images.
        to_reconstruction: perceptual distance to the tokenizer's own reconstruction, fitted views.
        to_view: perceptual distance to the view; ``tokenizer_to_view`` is what the tokenizer alone has.
        uninformed: distance of the mean latent (most frequent id), decoded, to the reconstruction.
        loss: training loss.
        token_accuracy: by set of views, ids only.
        unseen: share of held-out ids that no fitted view has, by set.
        distinct: largest number of different ids (rows) of one run.
        latent_norm: mean norm in the bottleneck.
        replicates: bootstrap replicates of ``index``.
    """

    path: str
    tokenizer: str
    setting: str
    dims: int
    sphere: str
    parameters: int
    images: int
    seeds: int
    unit: str
    index: Estimate
    index_heldout_views: Estimate
    index_heldout_images: Estimate
    to_reconstruction: Estimate
    to_view: Estimate
    tokenizer_to_view: float
    uninformed: float
    loss: float
    token_accuracy: Mapping[str, float]
    unseen: Mapping[str, float]
    distinct: int
    latent_norm: float
    replicates: np.ndarray | None = field(default=None, repr=False)

    @property
    def units(self) -> int:
        """How many there are of what the intervals are over."""
        return {"images": self.images, "seeds": self.seeds}.get(self.unit, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; estimates become ``{"value", "interval"}``."""
        values: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if isinstance(value, Estimate):
                value = {"value": value.value, "interval": None if value.interval is None else list(value.interval)}
            if name != "replicates":
                values[name] = dict(value) if isinstance(value, Mapping) else value
        return values


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[Summary]:
    """Return one summary per tokenizer and setting, in the order of the runs (records of ``results.json``)."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["path"], run["dims"], run["sphere"]), []).append(run)
    return [_summary(group) for _, group in sorted(groups.items(), key=lambda item: item[0][0])]


def _summary(runs: Sequence[Mapping[str, Any]]) -> Summary:
    first = runs[0]
    subjects, seeds = ({run[name] for run in runs} for name in ("subject", "seed"))
    unit = "images" if len(subjects) > 1 else "seeds" if len(seeds) > 1 else "nothing"
    groups = _units(runs, "subject" if unit == "images" else "seed")

    def end(which: str, kind: str) -> np.ndarray:
        return np.array([np.mean([run["curves"][which][kind][-1] for run in group]) for group in groups])

    def mean_of(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    other_view = np.array([np.mean([run["references"]["other_view"] for run in group]) for group in groups])
    indices = {name: _ratio(end(name, "to_reconstruction"), other_view) for name in first["curves"]}
    accuracies = {name: curve["token_accuracy"] for name, curve in first["curves"].items() if "token_accuracy" in curve}
    return Summary(
        path=first["path"],
        tokenizer=first["tokenizer"],
        setting=first["setting"],
        dims=first["dims"],
        sphere=first["sphere"],
        parameters=first["parameters"],
        images=len(subjects),
        seeds=len(seeds),
        unit=unit,
        index=indices["fitted"][0],
        index_heldout_views=indices["heldout_views"][0],
        index_heldout_images=indices["heldout_images"][0],
        to_reconstruction=_ratio(end("fitted", "to_reconstruction"))[0],
        to_view=_ratio(end("fitted", "to_view"))[0],
        tokenizer_to_view=mean_of(run["references"]["tokenizer_fitted"] for run in runs),
        uninformed=mean_of(run["references"]["uninformed"] for run in runs),
        loss=mean_of(run["curves"]["fitted"]["loss"][-1] for run in runs),
        token_accuracy={name: float(end(name, "token_accuracy").mean()) for name in accuracies},
        unseen={name: mean_of(run["unseen"][name] for run in runs) for name in first["unseen"]},
        distinct=max(run["distinct"] for run in runs),
        latent_norm=mean_of(run["latent_norm"][-1] for run in runs),
        replicates=indices["fitted"][1],
    )


def _units(runs: Sequence[Mapping[str, Any]], name: str) -> list[list[Mapping[str, Any]]]:
    """Return the runs by image (or seed), in ascending order, so that two summaries of the same ones are paired."""
    return [[run for run in runs if run[name] == value] for value in sorted({run[name] for run in runs})]


def _ratio(values: np.ndarray, over: np.ndarray | None = None) -> tuple[Estimate, np.ndarray | None]:
    """Return mean(values) / mean(over), its interval over units [n] and the replicates; no interval for one unit."""
    table = np.stack([values, np.ones_like(values) if over is None else over], axis=1)
    top, bottom = table.mean(0)
    if len(values) < 2:
        return Estimate(float(top / bottom)), None
    means = bootstrap_means(table, seed=0)
    replicates = means[:, 0] / means[:, 1]
    return Estimate(float(top / bottom), percentile_interval(replicates, len(values), (0.0, np.inf))), replicates


@dataclass(frozen=True)
class Verdict:
    """What the study says about the claim.

    Attributes:
        claim: the published one.
        word: ``confirmed``, ``refuted`` or ``undecided`` at this scale.
        sentence: the numbers behind it, in words.
        caveat: what they do not show.
        threshold: collapse index that counts as collapse.
        difference: index of continuous latents minus that of ids, with its interval, where both were run.
    """

    claim: str
    word: str
    sentence: str
    caveat: str
    threshold: float = COLLAPSED
    difference: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = asdict(self)
        if self.difference is not None:
            values["difference"] = {"value": self.difference.value, "interval": self.difference.interval}
        return values


def judge(summaries: Sequence[Summary], perceptual: str) -> Verdict:
    """Judge the claim by the first setting of each tokenizer; the other settings are controls.

    Confirmed: the whole interval of the continuous index is at or above `COLLAPSED` and that of the ids below. Refuted: the
    continuous one is below, or that of the ids at or above. Otherwise, and with a single run, undecided.
    """
    continuous, discrete = (next((s for s in summaries if s.path == path), None) for path in ("continuous", "discrete"))
    states = [None if side is None else _state(side) for side in (continuous, discrete)]
    word = "undecided"
    if states[0] == "does not collapse" or states[1] == "collapses":
        word = "refuted"
    elif states == ["collapses", "does not collapse"]:
        word = "confirmed"
    present = [(side, state) for side, state in zip((continuous, discrete), states, strict=True) if side and state]
    main = present[0][0]
    parts = [_clause(side, state) for side, state in present]
    difference = _difference(continuous, discrete)
    if difference is not None:
        parts.append(f"difference {_estimate(difference)}")
    parts += _controls(summaries, continuous)
    scale = (
        f"{_count(main.images, 'image')} x {_count(main.seeds, 'seed')}, {perceptual}, 95 % intervals over {main.unit}; "
        f"collapse: index of at least {COLLAPSED}, where 1 is as far as another view of the image"
    )
    return Verdict(CLAIM, word, f"{'; '.join(parts)} ({scale})", _caveat(continuous, discrete), difference=difference)


def _state(side: Summary) -> str:
    low, high = side.index.interval or (-np.inf, np.inf)
    return "collapses" if low >= COLLAPSED else "does not collapse" if high < COLLAPSED else "is undecided"


def _clause(side: Summary, state: str) -> str:
    kind = "continuous latents" if side.path == "continuous" else "ids"
    verb = {"collapses": "collapse", "does not collapse": "do not collapse", "is undecided": "may or may not collapse"}[
        state
    ]
    return f"the {kind} of {side.tokenizer} {verb} at {side.setting}: collapse index {_estimate(side.index)}"


def _difference(continuous: Summary | None, discrete: Summary | None) -> Estimate | None:
    if continuous is None or discrete is None:
        return None
    value = continuous.index.value - discrete.index.value
    if continuous.replicates is None or discrete.replicates is None:
        return Estimate(value)
    units = min(continuous.units, discrete.units)
    return Estimate(value, percentile_interval(continuous.replicates - discrete.replicates, units))


def _controls(summaries: Sequence[Summary], continuous: Summary | None) -> list[str]:
    """Say what the continuous latents do without the sphere, which tells the sphere's effect from that of the width."""
    free = next((s for s in summaries if s.path == "continuous" and s.sphere == "none" and s is not continuous), None)
    if continuous is None or free is None:
        return []
    return [f"without normalisation the continuous index is {_estimate(free.index)}"]


def _caveat(continuous: Summary | None, discrete: Summary | None) -> str:
    parts = []
    if discrete is not None:
        parts.append(
            "a discrete bottleneck is given each id as input and as label, so on the fitted views it only memorises at most "
            f"{discrete.distinct} identities; on held-out views of the same images, {discrete.unseen['heldout_views']:.0%} "
            f"of whose ids it never saw, its index is {_estimate(discrete.index_heldout_views)} "
            f"(token accuracy {discrete.token_accuracy['heldout_views']:.0%})"
        )
    if continuous is not None:
        parts.append(f"held-out views give the continuous latents {_estimate(continuous.index_heldout_views)}")
        parts.append(f"held-out images {_estimate(continuous.index_heldout_images)}")
    else:
        parts.append("no continuous tokenizer was run, so half of the claim is untested")
    if discrete is None:
        parts.append("no discrete tokenizer was run, so half of the claim is untested")
    side = continuous or discrete
    if side is not None and side.unit != "images":
        parts.append("one image says nothing about others")
    elif side is not None and side.images < _FEW:
        parts.append(f"an interval over {side.images} images is rough")
    return "; ".join(parts)


def write_summary(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``summary.md`` from the content of ``results.json``."""
    write_text(folder / "summary.md", "\n".join(summary_lines(results)) + "\n")


def summary_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the study in Markdown: verdict, table, what was run, figures."""
    verdict = results["verdict"]
    lines = ["# Bottleneck collapse", "", f"Claim: {verdict['claim']}.", ""]
    lines += [f"**{verdict['word'].capitalize()} at this scale**: {verdict['sentence']}.", ""]
    lines += [f"Caveat: {verdict['caveat']}.", ""]
    lines += [markdown_row(_COLUMNS), markdown_row(["---"] * len(_COLUMNS))]
    lines += [markdown_row(row) for row in table_rows(results)]
    lines += ["", *(f"* {line}" for line in _facts(results)), ""]
    lines += [f"![{Path(figure).stem}]({figure})" for figure in results["figures"] if figure.endswith(".png")]
    return lines


_COLUMNS = (
    "tokenizer",
    "bottleneck",
    "parameters",
    "collapse index",
    "held-out views",
    "held-out images",
    "to reconstruction",
    "to view",
    "tokenizer to view",
    "token accuracy",
)


def print_study(results: Mapping[str, Any]) -> None:
    """Print table, verdict and caveat to stdout; plain text unless it is a terminal."""
    title = f"Bottleneck collapse on {results['data']['name']}, {results['perceptual']}"
    verdict = results["verdict"]
    lines = [f"{verdict['word']} at this scale: {verdict['sentence']}", f"caveat: {verdict['caveat']}"]
    print_tables([(title, _COLUMNS, table_rows(results))], [*lines, *_notes(results)])


def table_rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table, one row per tokenizer and setting."""
    return [
        (
            s["tokenizer"],
            s["setting"],
            f"{s['parameters']:,}",
            *(_cell(s[name]) for name in ("index", "index_heldout_views", "index_heldout_images")),
            *(_short(s[name]["value"]) for name in ("to_reconstruction", "to_view")),
            _short(s["tokenizer_to_view"]),
            f"{s['token_accuracy']['fitted']:.3f}" if s["token_accuracy"] else "",
        )
        for s in results["summaries"]
    ]


def _notes(results: Mapping[str, Any]) -> list[str]:
    """Say which network judged and, where they differ, why the numbers of parameters are not the published ones."""
    name = results["perceptual"]
    judge_line = f"judged by {_NETWORKS.get(name, name)} ({name}): distances of different networks do not compare"
    return [judge_line, *_parameter_note(results)]


def _parameter_note(results: Mapping[str, Any]) -> list[str]:
    """Return one line about the first setting, or none when it has the published numbers of parameters."""
    first = {path: next(s for s in results["summaries"] if s["path"] == path) for path in results["tokenizers"]}
    found = {path: summary["parameters"] for path, summary in first.items()}
    if all(count == PUBLISHED_PARAMETERS[path] for path, count in found.items()):
        return []
    dims = next(iter(first.values()))["dims"]
    codes = next(iter(results["tokenizers"].values()))["codes"]
    whose = f"of {first['discrete']['tokenizer']}" if "discrete" in first else "of the published vocabulary"
    here = [f"{dims} numbers", f"{codes:,} codes"]
    if (side := results["tokenizers"].get("continuous")) is not None:
        here.insert(1, f"{patch_width(tuple(side['latent_shape']), side['patch'])} per position")
    counts = " and ".join(f"{count:,} ({path})" for path, count in found.items())
    published = " and ".join(f"{PUBLISHED_PARAMETERS[path]:,}" for path in found)
    return [
        f"parameters {counts} instead of the published {published}: the budget is 2 x {dims} numbers x {codes:,} codes {whose} = "
        f"{2 * dims * codes:,}, which a continuous bottleneck fills with whole units; here {', '.join(here)}, published 6 "
        f"numbers, 16 per position, {CODES:,} codes"
    ]


def _facts(results: Mapping[str, Any]) -> list[str]:
    data = results["data"]
    facts = [
        f"{data['name']} at {results['image_size']} pixels, images {', '.join(map(str, results['subjects']))}, "
        f"{_count(results['seeds'], 'seed')}, {results['views']} views each, {results['iterations']} iterations",
        *_notes(results),
        "collapse index: distance to the tokenizer's own reconstruction over the distance "
        "between its reconstructions of different views of the image",
    ]
    for path, side in results["tokenizers"].items():
        name, shape = side["tokenizer"]["name"], " x ".join(map(str, side["latent_shape"]))
        cut = (
            f", patches of {side['patch']}x{side['patch']} cells"
            if path == "continuous"
            else f", {side['codes']:,} codes"
        )
        facts.append(
            f"{path}: {name} ({side['tokenizer']['release']}), latents {shape}{cut}; normalisation {side['normalisation']}"
        )
    return [*facts, f"made by `{results['command']}`"] if results["command"] else facts


def _cell(estimate: Mapping[str, Any]) -> str:
    interval: Interval | None = tuple(estimate["interval"]) if estimate["interval"] else None
    return _estimate(Estimate(estimate["value"], interval))


def _estimate(estimate: Estimate) -> str:
    value = _short(estimate.value)
    return value if estimate.interval is None else f"{value} [{', '.join(map(_short, estimate.interval))}]"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"
