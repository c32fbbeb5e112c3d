"""A comparison of generators for reading: tables in Markdown, every point in one CSV file, and the figures."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentlab.files import write_text
from latentlab.report_table import PlainTable, markdown_row, number, print_tables

COMPARISON_SCHEMA_VERSION = 1
"""Version of the form of a comparison's ``results.json``; raised when a key changes its meaning or disappears."""

_TERA = 1e12

_COLUMNS = (
    "generator", "seed", "part", "share", "step", "operations", "training_seconds", "scale", "distance", "distance_low",
    "distance_high", "precision", "recall", "evaluations_per_image", "seconds_per_image",
)  # fmt: skip


def write_tables(results: Mapping[str, Any], folder: Path) -> None:
    """Write ``table.md`` and ``points.csv``."""
    write_text(folder / "table.md", "\n".join(_markdown(results)) + "\n")
    write_text(folder / "points.csv", points_csv(results))


def distance_name(results: Mapping[str, Any]) -> str:
    """Return what the distance is called, with what decides its size: ``fd_... on fashion:test (n=2,000)``."""
    names = {name for point in _done(results) for name in point["quality"] if name.startswith(("fd_", "fid"))}
    name = min(names) if names else f"Frechet distance on {results['extractor']}"
    return f"{name} on {results['reference']['name']} (n={results['samples']:,})"


def quality(point: Mapping[str, Any], name: str) -> tuple[float, tuple[float, float] | None]:
    """Return value and interval of the ``distance``, ``precision`` or ``recall`` of a point; NaN where it failed."""
    starts = ("fd_", "fid") if name == "distance" else (name,)
    for key, found in (point.get("quality") or {}).items():
        if key.startswith(starts):
            return found["value"], None if found["interval"] is None else tuple(found["interval"])
    return float("nan"), None


def _done(results: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for one in results["generators"]:
        for run in one["runs"]:
            yield from (point for point in (*run["curve"], *run["guidance"]) if not point["error"])


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> list[PlainTable]:
    """Return the tables: training, quality at its end, cost of an image."""
    return [_training_table(results), _quality_table(results), _cost_table(results)]


def _training_table(results: Mapping[str, Any]) -> PlainTable:
    headings = ["generator", "latents of", "parameters", "steps x batch", "operations (10^12)", "s/step", "minutes"]
    rows = []
    for one in results["generators"]:
        pace = one["seconds_per_step"]
        rows.append([
            one["label"], one["tokenizer"], f"{one['parameters']:,}", f"{one['steps']:,} x {one['batch_size']}",
            number(one["steps"] * one["operations_per_step"] / _TERA), number(pace), number(pace * one["steps"] / 60),
        ])  # fmt: skip
    return "Training", headings, rows


def _quality_table(results: Mapping[str, Any]) -> PlainTable:
    name = distance_name(results)
    swept = _is_swept(results)
    headings = ["generator", name, "precision", "recall", *(["best guided", "at scale"] if swept else [])]
    published = [key for key in results["published"] if key.startswith("fid")]
    headings += [f"published: {results['published'][key]}" for key in published]
    rows = []
    for one in results["generators"]:
        runs = [run for run in one["runs"] if not run["error"]]
        if not runs:
            rows.append([one["label"], "failed", *["-"] * (len(headings) - 2)])
            continue
        ends = [run["guidance"][0] for run in runs]
        scale, guided = _best_scale(runs)
        rows.append([
            one["label"], _over_seeds(ends, "distance"), _over_seeds(ends, "precision"), _over_seeds(ends, "recall"),
            *([number(guided), number(scale)] if swept else []),
            *(_cell(one["published"].get(key)) for key in published),
        ])  # fmt: skip
    for floor, found in results["floors"].items():
        point = [{"quality": found}]
        values = [_over_seeds(point, key) for key in ("distance", "precision", "recall")]
        rows.append([f"({floor})", *values, *["-"] * (len(headings) - 4)])
    return "Quality at the end of training", headings, rows


def _is_swept(results: Mapping[str, Any]) -> bool:
    """Return whether there are several guidance scales to choose from."""
    return len({point["scale"] for _, run in _runs(results) for point in run["guidance"]}) > 1


def _best_scale(runs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the scale with the least distance, mean over seeds, and that distance."""
    by_scale = {
        point["scale"]: [quality(run["guidance"][place], "distance")[0] for run in runs]
        for place, point in enumerate(runs[0]["guidance"])
    }
    best = min(by_scale, key=lambda scale: float(np.mean(by_scale[scale])))
    return best, float(np.mean(by_scale[best]))


def _over_seeds(points: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return one value with its interval, several as mean and range."""
    values = [quality(point, name) for point in points]
    numbers = [value for value, _ in values]
    if len(numbers) > 1:
        return f"{number(float(np.mean(numbers)))} ({number(min(numbers))} .. {number(max(numbers))})"
    value, interval = values[0]
    return number(value) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")


def _cost_table(results: Mapping[str, Any]) -> PlainTable:
    headings = ["generator", "guidance", "steps", "evaluations per image", "s/image, one at a time", "of it decoding"]
    published = [key for key in results["published"] if not key.startswith("fid")]
    headings += [f"published: {results['published'][key]}" for key in published]
    rows = []
    for one in results["generators"]:
        for cost in next((run["cost"] for run in one["runs"] if run.get("cost")), []):
            rows.append([
                one["label"], number(cost["scale"]), str(cost["steps"]), number(cost["evaluations_per_image"]),
                number(cost["seconds_per_image"]), number(cost["decoding_seconds"]),
                *(_cell(one["published"].get(key)) for key in published),
            ])  # fmt: skip
    return "What an image costs", headings, rows


def _cell(value: float | None) -> str:
    return "-" if value is None else number(value)


def remarks(results: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know: how it was made, what compares and what does not, failures, warnings."""
    seeds = results["seeds"]
    spread = (
        f"mean (range) over {seeds} seeds" if seeds > 1 else "one seed; brackets: 95 % over images, not over trainings"
    )
    lines = [
        f"every generator was trained with {number(results['operations'] / _TERA)} x 10^12 floating-point operations "
        f"(products of matrices, forward and backward) and sampled from {results['weights']} weights; {spread}",
        "minutes: steps times the median time of a step, by itself after the runs, on this machine",
    ]
    if _is_swept(results):
        lines.append(
            "the best guidance scale was chosen on the very images it is reported on, which flatters it a little"
        )
    if results["sources"]:
        lines.append(f"published: {results['sources']}; other images, sizes and features, so only the order compares")
    lines += [f"{one['label']}: {one['note']}" for one in results["generators"] if one["note"]]
    lines += failures(results)
    warnings = {text for point in _done(results) for found in point["quality"].values() for text in found["warnings"]}
    lines += sorted(warnings)
    return [*lines, f"made by `{results['command']}`"] if results["command"] else lines


def failures(results: Mapping[str, Any]) -> list[str]:
    """Return one line about every run that failed, with where its log is."""
    return [
        f"failed: {one['label']}, seed {run['seed']}: {run['error']} (log: {run['log']})"
        for one in results["generators"]
        for run in one["runs"]
        if run["error"]
    ]


def _markdown(results: Mapping[str, Any]) -> list[str]:
    lines = [f"# {results['title']}", ""]
    for title, headings, rows in tables(results):
        lines += [f"## {title}", "", markdown_row(headings), markdown_row(["---"] * len(headings))]
        lines += [*map(markdown_row, rows), ""]
    lines += [f"* {line}" for line in remarks(results)]
    pictures = [f"![{Path(figure).stem}]({figure})" for figure in results["figures"] if figure.endswith(".png")]
    return [*lines, "", *pictures]


def points_csv(results: Mapping[str, Any]) -> str:
    """Return one line per measured point; empty where there is no number."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(_COLUMNS)
    for one in results["generators"]:
        for run in one["runs"]:
            for part in ("curve", "guidance"):
                table.writerows([one["label"], run["seed"], part, *_csv_cells(point)] for point in run[part])
    return stream.getvalue()


def _csv_cells(point: Mapping[str, Any]) -> list[Any]:
    distance, interval = quality(point, "distance")
    sampling = point.get("sampling") or {}
    cells = [
        *(point.get(key) for key in ("share", "step", "operations", "seconds")), point.get("scale", 1.0), distance,
        *(interval or (None, None)), quality(point, "precision")[0], quality(point, "recall")[0],
        sampling.get("evaluations_per_image"), sampling.get("seconds_per_image"),
    ]  # fmt: skip
    return ["" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else cell for cell in cells]


def print_comparison(results: Mapping[str, Any]) -> None:
    """Print tables and remarks to stdout; plain text unless it is a terminal."""
    print_tables(tables(results), remarks(results), results["title"])


# --- figures ----------------------------------------------------------------------------------------------------------


def draw_figures(results: Mapping[str, Any], out: Path) -> list[str]:
    """Draw learning curves, guidance curves where there are several scales, and cost against quality.

    Returns:
        Files relative to ``out``.
    """
    from figures import guidance_curves, learning_curves, sampling_cost
    from figures.style import save

    name = distance_name(results)
    files: list[Path] = []
    if curves := _curves(results):
        files += save(learning_curves.draw(curves, name, _floor_lines(results)), out / "figures" / "learning_curves")
    if _is_swept(results):
        files += save(guidance_curves.draw(_sweeps(results), name, _floor_lines(results)), out / "figures" / "guidance")
    if costs := _costs_and_quality(results):
        files += save(sampling_cost.draw(costs, name), out / "figures" / "sampling_cost")
    return [file.relative_to(out).as_posix() for file in files]


def _floor_lines(results: Mapping[str, Any]) -> dict[str, float]:
    return {name: quality({"quality": found}, "distance")[0] for name, found in results["floors"].items()}


def _runs(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for one in results["generators"]:
        yield from ((one["label"], run) for run in one["runs"] if not run["error"])


def _curves(results: Mapping[str, Any]) -> dict[str, list[dict[str, list[float]]]]:
    """Return, by generator, the learning curve of each seed."""
    curves: dict[str, list[dict[str, list[float]]]] = {}
    for label, run in _runs(results):
        curves.setdefault(label, []).append({
            "step": [point["step"] for point in run["curve"]],
            "operations": [point["operations"] for point in run["curve"]],
            "minutes": [point["seconds"] / 60 for point in run["curve"]],
            "distance": [quality(point, "distance")[0] for point in run["curve"]],
        })  # fmt: skip
    return curves


def _sweeps(results: Mapping[str, Any]) -> dict[str, list[dict[str, list[float]]]]:
    """Return, by generator, the guidance sweep of each seed."""
    sweeps: dict[str, list[dict[str, list[float]]]] = {}
    for label, run in _runs(results):
        sweep = {"scale": [point["scale"] for point in run["guidance"]]}
        sweep |= {
            name: [quality(point, name)[0] for point in run["guidance"]] for name in ("distance", "precision", "recall")
        }
        sweeps.setdefault(label, []).append(sweep)
    return sweeps


def _costs_and_quality(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, per generator and guidance scale, seconds of an image, evaluations and quality, of the first seed."""
    rows = []
    for label, run in _runs(results):
        at = {point["scale"]: quality(point, "distance")[0] for point in run["guidance"]}
        for cost in run["cost"]:
            facts = {"label": label, "scale": cost["scale"], "seconds": cost["seconds_per_image"]}
            rows.append({**facts, "evaluations": cost["evaluations_per_image"], "distance": at[cost["scale"]]})
    return rows
