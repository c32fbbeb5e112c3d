"""The made-up study with all that a real one can have: controls, more quality, decoders, trajectories, analysis, details."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr

from latentlab.study.table import StudyTable

from ..latentlab.study.example_study import columns_of, example_study

TARGET = "gfd_fashion_classifier"
CONTROLS = {"mixed": 30.0, "checkerboard": 12.0, "permuted": 0.1}
"""Transformation -> what it adds to the distance of samples."""

_MORE = columns_of({
    "reconstruction_distance efficientnet-lite0": {"rfd_efficientnet_lite0": 1},
    "evaluate fashion-classifier": {
        "gfd_reconstructions_fashion_classifier": 1, "precision_fashion_classifier": 1, "recall_fashion_classifier": 1,
    },
    "latent_distance": {"fd_latents": 1},
    "trajectories": {"paths": {"step_variance_correlation": {"value": 1, "interval": None}}},
    "decoder": {f"decoder_{what}_{s}": 1 for what in ("image", "feature") for s in (0.1, 0.3, 1.0)},
})  # fmt: skip


def rich_study(tokenizers: int = 24, controls: bool = True, **options: Any) -> StudyTable:
    """Return the study; its first tokenizer has the controls, and a second seed."""
    study = example_study(tokenizers, **options)
    rows = study.rows
    parts = [rows]
    base = rows[rows["tokenizer"] == "tokenizer-00"]
    if controls:
        for name, worse in CONTROLS.items():
            changed = {"tokenizer": f"tokenizer-00-{name}", "control": name, "control_of": "tokenizer-00"}
            parts.append(base.assign(**changed, cluster="control", **{TARGET: base[TARGET] + worse}))
        parts.append(base.assign(tokenizer_seed=1, **{TARGET: base[TARGET] + 1.0}))
    rows = pd.concat(parts, ignore_index=True)
    rng = np.random.default_rng(3)
    noise = rng.uniform(0.9, 1.1, len(rows))
    by_tokenizer = rows["tokenizer"].map({name: rng.uniform(0.5, 1.5) for name in rows["tokenizer"].unique()})
    gfd = rows[TARGET]
    more = {
        "rfd_efficientnet_lite0": 4 * by_tokenizer,
        "gfd_reconstructions_fashion_classifier": 0.8 * gfd * noise,
        "fd_latents": gfd / 20 * noise,
        "precision_fashion_classifier": 0.5 + 0.1 * rows["guidance"] * noise,
        "recall_fashion_classifier": 0.8 - 0.1 * rows["guidance"] * noise,
        "step_variance_correlation": -0.9 * noise / 1.1,
        **{f"decoder_{what}_{s}": s * by_tokenizer for what in ("image", "feature") for s in (0.1, 0.3, 1.0)},
    }
    return replace(study, rows=rows.assign(**more), columns=(*study.columns, *_MORE))


def analysis_of(study: StudyTable) -> dict[str, Any]:
    """Return what an analysis would say about the study, as `scipy` computes it; intervals are made up."""
    correlations, pairs, prediction, noise = [], [], [], []
    cells = [tuple(cell) for cell in study.rows[["generator", "guidance"]].drop_duplicates().to_numpy()]
    for generator, guidance in cells:
        where = {"target": TARGET, "generator": generator, "guidance": guidance}
        means = study.by_tokenizer(generator, guidance)
        for predictor in study.names("measurement"):
            for method, function in (("pearson", pearsonr), ("spearman", spearmanr)):
                r, p = function(means[predictor], means[TARGET])
                for covariates in ([], ["decoder_sensitivity"]):
                    correlations.append({
                        **where, "predictor": predictor, "method": method, "n": len(means), "value": r, "low": r - 0.1,
                        "high": r + 0.1, "p": p, "p_adjusted": p, "covariates": covariates, "within": "", "warnings": [],
                    })  # fmt: skip
        pair = {"first": "m_viv", "second": "m_srss", "n": len(means)}
        pairs.append({**where, **pair, "r2": 0.91, "r2_adjusted": 0.9, "r2_cross_validated": 0.85})
        for scheme in ("leave_one_out", "leave_cluster_out"):
            told = means[["tokenizer", "cluster"]].assign(observed=means[TARGET], predicted=means[TARGET] + 0.5)
            scores = {"n": len(means), "r2": 0.8, "rmse": 1.2, "spearman": 0.9}
            rows = told.to_dict("records")
            prediction.append({**where, "predictors": ["m_viv", "m_srss"], "scheme": scheme, **scores, "rows": rows})
        noise.append({
            **where, "n": len(means), "repeats": 2, "between_sd": 6.0, "within_sd": 0.3, "ceiling": 0.99,
        })  # fmt: skip
    return {
        "primary": _primary(study),
        "correlations": correlations, "pairs": pairs, "prediction": prediction, "noise": noise, "warnings": [],
        "stability": list(_stability(cells)),
    }  # fmt: skip


def _primary(study: StudyTable) -> list[dict[str, Any]]:
    rows = study.rows[study.rows["control"] == ""]
    means = rows.groupby("tokenizer").mean(numeric_only=True)
    found = []
    for place, predictor in enumerate(study.names("measurement")):
        value = spearmanr(means[predictor], means[TARGET]).statistic
        common = {"target": TARGET, "predictor": predictor, "settings": 6, "n": 24, "agrees": place > 0}
        for given, change in (((), 0.0), (("decoder_sensitivity",), -0.1 * value)):
            ends = {"low": value + change - 0.2, "high": value + change + 0.2}
            found.append(
                {**common, "covariates": [*given], "value": value + change, **ends, "p_adjusted": 0.04 * (1 + place)}
            )
    return found


def _stability(cells: list[tuple[str, float]]) -> Iterable[dict[str, Any]]:
    for place, first in enumerate(cells):
        for second in cells[place + 1 :]:
            ends = {end: {"generator": g, "guidance": w} for end, (g, w) in (("first", first), ("second", second))}
            yield {"target": TARGET, **ends, "n": 24, "spearman": 0.97, "kendall": 0.9, "low": 0.9, "high": 0.99}


def details_of(name: str, ease: float) -> dict[str, Any]:
    """Return details of a measurement for a tokenizer of some ease."""
    t = np.linspace(0.05, 0.95, 10)
    k = np.array([1, 2, 5, 10, 20, 50])
    rng = np.random.default_rng(int(1000 * ease))
    labels = np.arange(200) % 5
    tables = {
        "straightness": {"t": t, "length_ratio": 1 + ease * np.sin(6 * t)},
        "viv": {"t": t, "curve": 1 - ease * np.sin(6 * t) * 0.5},
        "gmm": {"components": k, "heldout_nll": 40 - 3 * np.log(k) + 5 * ease + 0.02 * k, "dims": 16},
        "umap": {"points": rng.normal(size=(200, 2)) + 3 * labels[:, None] * ease, "labels": labels},
    }
    return {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in tables[name].items()
    }  # fmt: skip


def write_study(folder: Path, study: StudyTable) -> Path:
    """Write a results folder with everything optional, and return it."""
    study.write(folder)
    (folder / "analysis.json").write_text(json.dumps(analysis_of(study)))
    (folder / "floors.json").write_text(json.dumps({"fashion_classifier": 1.0}))
    for place, tokenizer in enumerate(study.rows["tokenizer"].unique()):
        of = folder / "details" / tokenizer
        for name, part in (
            ("viv", ""),
            ("gmm", ""),
            ("umap", ""),
            *(("straightness", g) for g in ("sit", "lightningdit")),
        ):
            (of / part).mkdir(parents=True, exist_ok=True)
            (of / part / f"{name}.json").write_text(json.dumps(details_of(name, 0.2 + 0.02 * place)))
    return folder
