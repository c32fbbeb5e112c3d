"""A results folder with everything a report can show, made from the made-up study."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentlab.study.table import Column, StudyTable

from .example_study import example_study

HOSTILE = "<img src=x onerror=window.hacked=1>"
"""Runs a script wherever it is taken for HTML."""

TARGET = "gfd_fashion_classifier"
ANALYSIS: dict[str, Any] = {
    "correlations": [
        {
            "target": TARGET, "generator": "sit", "guidance": 1.0, "predictor": predictor, "method": method, "n": 8,
            "value": value, "low": value - 0.1, "high": value + 0.1, "p": 0.01, "p_adjusted": 0.04,
            "covariates": covariates, "within": "", "warnings": [],
        }
        for predictor, value in (("m_viv", 0.9), ("m_cds", 0.0))
        for method in ("spearman", "pearson")
        for covariates in ([], ["decoder_sensitivity"])
    ],
    "noise": [{"target": TARGET, "generator": "sit", "guidance": 1.0, "n": 8, "repeats": 2, "ceiling": 0.987654}],
    "plan": {"targets": [TARGET]},
    "warnings": ["one seed only"],
}  # fmt: skip
CLAIMS = [
    {
        "id": "C2", "claim": "VIV predicts", "verdict": "confirmed", "scale": "embedded", "n": 8, "value": 0.9, "low": 0.8,
        "high": 0.95, "effect": "Spearman", "why": "far from zero", "published": "0.87", "command": "latentlab claims",
        "source": "arXiv",
    },
    {"id": "C7", "claim": "A < B", "verdict": "undecided"},
]  # fmt: skip


def study_folder(folder: Path, tokenizers: int = 8) -> Path:
    """Write the table alone."""
    example_study(tokenizers).write(folder)
    return folder


def full_folder(folder: Path, tokenizers: int = 8) -> Path:
    """Write everything."""
    study_folder(folder, tokenizers)
    (folder / "analysis.json").write_text(json.dumps(ANALYSIS))
    (folder / "claims.json").write_text(json.dumps(CLAIMS))
    (folder / "plan.yaml").write_text("title: A study of ease\nimages: fashion\n")
    for number in range(tokenizers):
        for index, name in enumerate(("reconstructions", "sit", "lightningdit")):
            write_picture(folder / "pictures" / f"tokenizer-{number:02d}" / f"{name}.png", seed=3 * number + index)
    return folder


def hostile_folder(folder: Path) -> Path:
    """Write a study whose labels, columns, claims and warnings are HTML."""
    full_folder(folder)
    study = example_study(8)
    rows = study.rows.rename(columns={"psnr": HOSTILE})
    rows["tokenizer"] = HOSTILE + rows["tokenizer"]
    rows["cluster"] = HOSTILE + rows["cluster"]
    columns = tuple(replace(c, name=HOSTILE, unit=HOSTILE) if c.name == "psnr" else c for c in study.columns)
    StudyTable(rows, (*columns, Column("family", "identity", HOSTILE))).write(folder)
    (folder / "claims.json").write_text(json.dumps([{**CLAIMS[0], "claim": HOSTILE, "verdict": HOSTILE}]))
    correlations = [{**record, "predictor": HOSTILE} for record in ANALYSIS["correlations"]]
    (folder / "analysis.json").write_text(json.dumps({"correlations": correlations, "warnings": [HOSTILE]}))
    (folder / "plan.yaml").write_text(f'title: "</title>{HOSTILE}"\n')
    return folder


def write_picture(file: Path, seed: int, height: int = 32, width: int = 128) -> None:
    """Write noise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
