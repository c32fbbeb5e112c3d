"""A comparison of generators: equal compute for all, then quality over training, over guidance, and what an image costs.

Everything is kept by what determines it: trained runs by their configuration, points by weights, sampler settings, seed and
judge. A killed command continues; a generator, a scale or a seed that is added computes only itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from latentlab import __version__
from latentlab.errors import UserError
from latentlab.files import digest, write_json
from latentlab.finished import FinishedSteps
from latentlab.results import environment
from latentlab.runtime import make_writable, say
from latentlab.study.training.floors import real_floor, reconstruction_floor
from latentlab.study.training.generators_report import COMPARISON_SCHEMA_VERSION, draw_figures, write_tables
from latentlab.study.training.runs import Training, final_losses, held_out_loss, train_all
from latentlab.study.training.scoring import Judge, Point, measure_points
from latentlab.study.training.side_by_side import Outcome
from mind.ablation import as_overrides
from mind.comparison import Comparison, Generator
from mind.compute import parameter_count, step_operations, step_seconds
from mind.kinds import check_settings, open_recipe, read_run
from mind.open_generator import TokenizerChoice

_COUNTED_STEPS = 8
"""Steps whose operations are averaged: a masked generator's differ."""


@dataclass(frozen=True)
class Entrant:
    """A generator with what its training comes to.

    Attributes:
        generator: of the comparison.
        operations: floating-point operations of one optimiser step.
        parameters: number of trained ones.
        trainings: one run per seed.
    """

    generator: Generator
    operations: float
    parameters: int
    trainings: tuple[Training, ...]

    @property
    def steps(self) -> int:
        """Optimiser steps of each run."""
        return self.trainings[0].config.optimiser.steps

    def step_at(self, share: float) -> int:
        """Return the step after a share of the training."""
        return max(1, round(share * self.steps))


@dataclass(frozen=True)
class Plan:
    """A comparison with everything checked that can be checked before anything is trained.

    Attributes:
        comparison: what to do.
        entrants: in its order.
        runs: folder of the trained runs.
        kept: folder of what is drawn and judged.
        jobs: processes side by side.
        device: where everything is computed.
    """

    comparison: Comparison
    entrants: tuple[Entrant, ...]
    runs: Path
    kept: Path
    jobs: int
    device: str

    @cached_property
    def judge(self) -> Judge:
        """How images are judged."""
        return _judge(self.comparison)

    @property
    def seeds(self) -> int:
        """Runs of each generator."""
        return len(self.entrants[0].trainings)


def _judge(comparison: Comparison) -> Judge:
    return Judge(comparison.reference, comparison.reference_limit, comparison.extractor)


def plan_comparison(
    comparison: Comparison, out: Path, *, runs: Path | None = None, seeds: int = 1, jobs: int = 2, device: str = "cpu"
) -> Plan:
    """Resolve every generator, and count what a step of each costs; data that is not in the cache is encoded now.

    Args:
        comparison: from `load_comparison`.
        out: run directory.
        runs: folder of trained runs, samples and what they score, which several studies may share (default: below ``out``).
        seeds: runs of every generator, numbered from 0.
        jobs: processes side by side.
        device: where everything is computed.

    Raises:
        UserError: a generator that cannot be trained, numbers of parameters that differ too much, a reference or an extractor
            that is not here, or counts below 1.
    """
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, got {value}")
    for folder in (out, runs or out):
        make_writable(folder)
    _judge(comparison).check()
    for generator in comparison.generators:
        _check_sampler(generator)
    costs = [_costs(comparison, generator, out, device) for generator in comparison.generators]
    _check_sizes(comparison, [cost["parameters"] for cost in costs])
    budget = comparison.steps * costs[0]["operations"]
    entrants = []
    for generator, cost in zip(comparison.generators, costs, strict=True):
        steps = max(1, round(budget / cost["operations"]))
        kept = sorted({max(1, round(share * steps)) for share in comparison.shares()} - {steps})
        trainings = tuple(
            _training(comparison, generator, seed, **{"optimiser.steps": steps, "keep_steps": kept})
            for seed in range(seeds)
        )
        entrants.append(Entrant(generator, cost["operations"], cost["parameters"], trainings))
    return Plan(comparison, tuple(entrants), runs or out / "runs", runs or out, jobs, device)


def _training(comparison: Comparison, generator: Generator, seed: int, **more: Any) -> Training:
    overrides = as_overrides(comparison.training(generator, seed, **more))
    try:
        config = read_run(generator.kind, generator.base, overrides)
    except UserError as error:
        raise UserError(f"generator '{generator.label}': {error}") from error
    return Training(generator.kind, tuple(overrides), config)


def _check_sampler(generator: Generator) -> None:
    try:
        check_settings(generator.kind, generator.sample)
    except UserError as error:
        raise UserError(f"generator '{generator.label}': {error}") from error


def _costs(comparison: Comparison, generator: Generator, out: Path, device: str) -> dict[str, Any]:
    """Return ``operations`` of a step and ``parameters`` of a generator; counted once."""
    training = _training(comparison, generator, 0)
    key = digest([training.name, _COUNTED_STEPS])
    finished = FinishedSteps(out / "compute")
    kept = finished.get(key, key)
    if kept is None:
        recipe = open_recipe(generator.kind, training.config, torch.device(device))
        varied = _COUNTED_STEPS if generator.kind == "emigm" else 1
        kept = {"operations": step_operations(recipe, range(varied)), "parameters": parameter_count(recipe)}
        finished.put(key, key, kept)
    return dict(kept)


def _check_sizes(comparison: Comparison, parameters: list[int]) -> None:
    least, most = min(parameters), max(parameters)
    if most > least * (1 + comparison.parameters_within):
        told = ", ".join(f"{one.label} {count:,}" for one, count in zip(comparison.generators, parameters, strict=True))
        raise UserError(
            f"parameters differ by {100 * (most / least - 1):.1f} %, more than parameters_within allows: {told}"
        )


def run_comparison(plan: Plan, out: Path, *, command: str | None = None) -> dict[str, Any]:
    """Do what is missing, then write ``results.json``, ``table.md``, ``points.csv`` and the figures; return the results.

    A generator that fails is named with its reason, and costs no other.

    Args:
        plan: from `plan_comparison`.
        out: run directory.
        command: the command line, for the record.

    Raises:
        UserError: ``out`` cannot be written.
    """
    failed = train_all([t for one in plan.entrants for t in one.trainings], plan.runs, plan.jobs, plan.device)
    points = _measure_all(plan, out, failed)
    comparison = plan.comparison
    reference = plan.judge.check()
    results: dict[str, Any] = {
        "schema_version": COMPARISON_SCHEMA_VERSION,
        "latentlab": __version__,
        "command": command,
        "environment": environment(),
        "device": plan.device,
        "title": comparison.title,
        "published": comparison.published,
        "sources": comparison.sources,
        "samples": comparison.samples,
        "weights": "averaged" if comparison.averaged else "raw",
        "extractor": comparison.extractor,
        "reference": {"name": comparison.reference, "fingerprint": reference.fingerprint, "n": reference.n},
        "seeds": plan.seeds,
        "operations": comparison.steps * plan.entrants[0].operations,
        "floors": _floors(plan),
        "generators": [_record(plan, number, points, failed) for number in range(len(plan.entrants))],
    }
    results["figures"] = draw_figures(results, out)
    write_json(out / "results.json", results)
    write_tables(results, out)
    return results


# --- the points -------------------------------------------------------------------------------------------------------

Place = tuple[int, int, str, float]
"""Number of the entrant, seed, ``curve`` or ``guidance``, and the share or scale."""


def _places(plan: Plan) -> dict[Place, Point]:
    """Return every point; the end of a curve and scale 1 are the same one and measured once."""
    comparison, places = plan.comparison, {}
    for number, one in enumerate(plan.entrants):
        for seed, training in enumerate(one.trainings):

            def point(
                step: int, scale: float, one: Entrant = one, training: Training = training, seed: int = seed
            ) -> Point:
                weights = training.weights(plan.runs, step, comparison.averaged)
                settings = {**one.generator.sample, "cfg_scale": scale}
                data = training.config.data
                decoder = (
                    TokenizerChoice() if data.weights is None else TokenizerChoice(data.tokenizer, None, data.weights)
                )
                return Point(one.generator.kind, weights, settings, comparison.samples, seed, decoder)

            for share in comparison.shares():
                places[number, seed, "curve", share] = point(one.step_at(share), 1.0)
            for scale in comparison.scales():
                places[number, seed, "guidance", scale] = point(one.steps, scale)
    return places


def _measure_all(plan: Plan, out: Path, failed: Mapping[str, str]) -> dict[Place, Outcome]:
    """Return what became of every point of a generator that could be trained."""
    places = {
        place: point
        for place, point in _places(plan).items()
        if plan.entrants[place[0]].trainings[place[1]].name not in failed
    }
    outcomes = measure_points([*places.values()], plan.judge, plan.kept, out, plan.jobs, plan.device)
    return dict(zip(places, outcomes, strict=True))


def _floors(plan: Plan) -> dict[str, Any]:
    """Return what real images score, and per tokenizer its reconstructions."""
    comparison = plan.comparison
    floors: dict[str, Any] = {}
    for one in plan.entrants:
        data = one.trainings[0].config.data
        if data.train is None:
            continue  # a store, whose images are not known
        asked = data, comparison.samples, plan.judge, plan.kept, plan.device
        for name, floor in (
            ("real images", real_floor),
            (f"reconstructions of {data.tokenizer}", reconstruction_floor),
        ):
            if name not in floors:
                try:
                    floors[name] = floor(*asked)
                except UserError as error:  # the generators' numbers must not be lost
                    say(f"no floor of {name}: {error}")
    return floors


# --- the record -------------------------------------------------------------------------------------------------------


def _record(plan: Plan, number: int, points: Mapping[Place, Outcome], failed: Mapping[str, str]) -> dict[str, Any]:
    """Return all about one generator."""
    one = plan.entrants[number]
    training = one.trainings[0].config
    pace = step_seconds(open_recipe(one.generator.kind, training, torch.device(plan.device)))
    return {
        **one.generator.model_dump(),
        "tokenizer": training.data.tokenizer,
        "parameters": one.parameters,
        "operations_per_step": one.operations,
        "steps": one.steps,
        "batch_size": training.optimiser.batch_size,
        "seconds_per_step": pace,
        "runs": [_run(plan, number, seed, pace, points, failed) for seed in range(plan.seeds)],
    }


def _run(
    plan: Plan, number: int, seed: int, pace: float, points: Mapping[Place, Outcome], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Return what came of one run: learning curve, guidance sweep, and what an image costs.

    Times of the curve are steps times ``pace``, the seconds of a step by itself: what else ran beside the run does not count.
    """
    one, comparison = plan.entrants[number], plan.comparison
    training = one.trainings[seed]
    if training.name in failed:
        reason = f"training: {failed[training.name]}"
        return {"seed": seed, "error": reason, "log": str(training.log(plan.runs)), "curve": [], "guidance": []}
    folder = training.folder(plan.runs)
    curve = []
    for share in comparison.shares():
        step = one.step_at(share)
        facts = {"share": share, "step": step, "operations": step * one.operations, "seconds": step * pace}
        curve.append(facts | _told(points[number, seed, "curve", share]))
    guidance = [{"scale": scale} | _told(points[number, seed, "guidance", scale]) for scale in comparison.scales()]
    errors = [point["error"] for point in (*curve, *guidance) if point["error"]]
    return {
        "seed": seed,
        "error": errors[0] if errors else None,
        "log": str(training.log(plan.runs)),
        "run": str(folder),
        "overrides": list(training.overrides),
        "losses": final_losses(folder),
        "held_out_loss": held_out_loss(folder, comparison.averaged),
        "curve": curve,
        "guidance": guidance,
        "cost": [] if errors or seed else _cost(plan, number),
    }


def _told(outcome: Outcome) -> dict[str, Any]:
    return {"error": outcome.error, **(outcome.value or {})}


def _cost(plan: Plan, number: int) -> list[dict[str, Any]]:
    """Return what one image at a time costs, without and with guidance of the greatest scale; of the first seed's weights."""
    places = _places(plan)
    scales = sorted({1.0, plan.comparison.scales()[-1]})
    return [
        {"scale": scale, **places[number, 0, "guidance", scale].cost(plan.comparison.timed, plan.device)}
        for scale in scales
    ]
