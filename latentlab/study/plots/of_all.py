"""The figures of a study about all its generators, by name: each takes what it needs from the study's folder."""

from collections.abc import Callable

from matplotlib.figure import Figure

from figures import (
    study_decoder_noise,
    study_latent_maps,
    study_noise,
    study_primary,
    study_ranking_stability,
    study_trajectories,
)
from figures.study_points import at
from latentlab.errors import UserError
from latentlab.study.plots.inputs import NOISE_COLUMN, StudyFolder, how_many


def _primary(study: StudyFolder) -> Figure:
    return study_primary.draw(study.held("primary"))


def _trajectories(study: StudyFolder) -> Figure:
    names = [name for name in ("straightness", "efficiency") if name in study.table.names("trajectory")]
    if not names:
        raise UserError("the table has neither straightness nor efficiency")
    guidance = study.scales(study.generators[0])[0]
    return study_trajectories.draw(study.table, names, study.targets()[0], guidance, study.records("correlations"))


def _latent_maps(study: StudyFolder) -> Figure:
    maps, generator = study.details("umap"), study.generators[0]
    target = study.targets()[0]
    means = study.table.by_tokenizer(generator, study.scales(generator)[0]).set_index("tokenizer")[target]
    shown = study.best_first(list(maps), generator)
    notes = {name: f"{target} {means[name]:.3g}" for name in shown if name in means.dropna()}
    names = next(iter(maps.values())).get("class_names") or ()
    about = how_many(len(shown), len(maps))
    return study_latent_maps.draw({name: maps[name] for name in shown}, notes, names, about)


def _decoder_noise(study: StudyFolder) -> Figure:
    measures: dict[str, dict[float, str]] = {}
    for name in study.table.names("decoder"):
        if found := NOISE_COLUMN.fullmatch(name):
            measures.setdefault(found[1], {})[float(found[2])] = name
    return study_decoder_noise.draw(study.table, measures)


def _ranking_stability(study: StudyFolder) -> Figure:
    cells = [(generator, scale) for generator in study.generators for scale in sorted(study.scales(generator))]
    target = study.targets()[0]
    records = [one for one in study.records("stability") if one["target"] == target]
    return study_ranking_stability.draw(study.table, target, cells, records)


def _noise(study: StudyFolder) -> Figure:
    target, guidance = study.targets()[0], study.scales(study.generators[0])[0]
    shown = [name for name in study.generators if _has(study, name, guidance, target)]
    if not shown:
        raise UserError(f"no generator has {target} at guidance {guidance:g}")
    return study_noise.draw(study.table, target, shown, guidance, study.records("noise"))


def _has(study: StudyFolder, generator: str, guidance: float, target: str) -> bool:
    rows = at(study.table, generator, guidance)
    return target in rows and bool(rows[target].notna().any())


OF_ALL: dict[str, Callable[[StudyFolder], Figure]] = {
    "primary": _primary,
    "trajectories_against_quality": _trajectories,
    "latent_maps": _latent_maps,
    "decoder_noise": _decoder_noise,
    "ranking_stability": _ranking_stability,
    "noise": _noise,
}
