"""The figures of a study about one generator, by name: each takes what it needs from the study's folder."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from figures import (
    guidance_curves,
    study_against_quality,
    study_control_effects,
    study_modes_against_loss,
    study_predicted_against_observed,
    study_reconstruction_against_generation,
    study_two_perspectives,
    study_variance_along_path,
    study_where_quality_is_lost,
)
from figures.study_points import at, facts
from latentlab.errors import UserError
from latentlab.study.analysis.regressions import LEAVE_ONE, of_most_points
from latentlab.study.plots.inputs import NOISE_COLUMN, StudyFolder, how_many

_MOST_MODELS = 2


def _against_quality(study: StudyFolder, generator: str) -> Figure:
    where = study.targets()[0], generator, study.scales(generator)[0]
    return study_against_quality.draw(study.table, study.measurements(), *where, study.records("correlations"))


def _confounders(study: StudyFolder, generator: str) -> Figure:
    decoder = [name for name in study.table.names("decoder") if not NOISE_COLUMN.fullmatch(name)]
    names = [*study.table.names("reconstruction"), *decoder]
    where = study.targets()[0], generator, study.scales(generator)[0]
    records = study.records("correlations")
    return study_against_quality.draw(study.table, names, *where, records, "Reconstruction and decoder")


def _two_perspectives(study: StudyFolder, generator: str) -> Figure:
    target, guidance = study.targets()[0], study.scales(generator)[0]
    wanted = (target, generator, guidance)
    pairs = [one for one in study.records("pairs") if (one["target"], one["generator"], one["guidance"]) == wanted]
    scored = [one for one in pairs if one["r2_cross_validated"] is not None]
    best = max(of_most_points(scored), key=lambda one: one["r2_cross_validated"], default=None)
    names = [best["first"], best["second"]] if best else _first_two(study)
    return study_two_perspectives.draw(study.table, names[0], names[1], target, generator, guidance, best)


def _first_two(study: StudyFolder) -> list[str]:
    """Return the published pair where it was measured, or the first two measurements."""
    names = study.measurements()
    if len(names) < 2:
        raise UserError("two perspectives need two measurements")
    published = ["m_lnc", "m_srss"]
    return published if set(published) <= set(names) else names[:2]


def _guidance(study: StudyFolder, generator: str) -> Figure:
    target = study.targets()[0]
    if len(study.scales(generator)) < 2:
        raise UserError(f"{generator} was sampled at one guidance scale only")
    judge = target.removeprefix("gfd_")
    quality = {"distance": target, "precision": f"precision_{judge}", "recall": f"recall_{judge}"}
    rows = study.table.rows[study.table.rows["generator"] == generator]
    shown = {key: name for key, name in quality.items() if name in rows and rows[name].notna().any()}
    sweeps = {str(name): runs for name, own in rows.groupby("tokenizer", sort=False) if (runs := _sweeps(own, shown))}
    groups = {name: one.cluster for name, one in facts(study.table).items()}
    floor = study.floors(strict=False).get(judge)
    title = f"Guidance of {generator}: a curve per tokenizer (circles: its best scale)"
    return guidance_curves.draw(sweeps, target, {} if floor is None else {"real images": floor}, groups, title)


def _sweeps(rows: pd.DataFrame, shown: dict[str, str]) -> list[dict[str, Any]]:
    """Return the sweep of each seed over the scales that all of them have; none with fewer than two, or without distances."""
    seeds = ["tokenizer_seed", "generator_seed"]
    tables = {key: rows.pivot(index=seeds, columns="guidance", values=name) for key, name in shown.items()}
    if "distance" not in tables:
        return []
    full = tables["distance"].dropna(how="all").dropna(axis=1)
    scales = list(full.columns)
    if len(scales) < 2:
        return []
    return [
        {"scale": scales, **{key: list(one.loc[seed, scales]) for key, one in tables.items()}} for seed in full.index
    ]


def _variance_along_path(study: StudyFolder, generator: str) -> Figure:
    paths, variances = study.details("straightness", generator), study.details("viv")
    both = study.best_first([name for name in paths if name in variances], generator)
    rows = study.table.rows[study.table.rows["generator"] == generator]
    r: dict[str, float] = {}
    if "step_variance_correlation" in rows:
        r = dict(rows.groupby("tokenizer")["step_variance_correlation"].mean())
    about = f"{generator}, {how_many(len(both), len(paths))}"
    return study_variance_along_path.draw({name: paths[name] for name in both}, variances, r, about)


def _modes_against_loss(study: StudyFolder, generator: str) -> Figure:
    if "held_out_loss" not in study.table.rows:
        raise UserError("the table has no held_out_loss")
    return study_modes_against_loss.draw(study.table, study.details("gmm"), generator, study.scales(generator)[0])


def _reconstruction_against_generation(study: StudyFolder, generator: str) -> Figure:
    columns = study.table.names("reconstruction")
    judges = {target.removeprefix("gfd_"): target for target in study.targets()}
    both = {judge: (f"rfd_{judge}", target) for judge, target in judges.items() if f"rfd_{judge}" in columns}
    if not both:
        raise UserError(f"the table has no rfd_{next(iter(judges))}")
    return study_reconstruction_against_generation.draw(
        study.table, both, generator, study.scales(generator)[0], study.floors()
    )


def _where_quality_is_lost(study: StudyFolder, generator: str) -> Figure:
    target, guidance = study.targets()[0], study.scales(generator)[0]
    judge = target.removeprefix("gfd_")
    stages = [name for name in (f"rfd_{judge}", f"gfd_reconstructions_{judge}") if name in study.table.names()]
    if not stages:
        raise UserError(f"the table has neither rfd_{judge} nor gfd_reconstructions_{judge}")
    rows = at(study.table, generator, guidance)
    latents = "fd_latents" if "fd_latents" in rows and rows["fd_latents"].notna().any() else None
    return study_where_quality_is_lost.draw(study.table, [*stages, target], generator, guidance, latents)


def _predicted_against_observed(study: StudyFolder, generator: str) -> Figure:
    wanted = (study.targets()[0], generator, study.scales(generator)[0])
    found = [one for one in study.held("prediction") if (one["target"], one["generator"], one["guidance"]) == wanted]
    left_out = [one for one in found if one["scheme"] == LEAVE_ONE and one["r2"] is not None]
    scores = {tuple(one["predictors"]): one["r2"] for one in of_most_points(left_out)}
    best = sorted(scores, key=lambda names: -scores[names])[:_MOST_MODELS]
    shown = [one for names in best for one in found if tuple(one["predictors"]) == names and one["rows"]]
    return study_predicted_against_observed.draw(study.table, shown or found[:1])


def _control_effects(study: StudyFolder, generator: str) -> Figure:
    if not any(one.control for one in facts(study.table).values()):
        raise UserError("the study has no control")
    left = [*study.targets(), *study.table.names("reconstruction")]
    return study_control_effects.draw(study.table, left, study.measurements(), generator, study.scales(generator)[0])


OF_A_GENERATOR: dict[str, Callable[[StudyFolder, str], Figure]] = {
    "against_quality": _against_quality,
    "confounders": _confounders,
    "two_perspectives": _two_perspectives,
    "guidance": _guidance,
    "variance_along_path": _variance_along_path,
    "modes_against_loss": _modes_against_loss,
    "reconstruction_against_generation": _reconstruction_against_generation,
    "where_quality_is_lost": _where_quality_is_lost,
    "predicted_against_observed": _predicted_against_observed,
    "control_effects": _control_effects,
}
