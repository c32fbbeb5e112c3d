"""Results files with numbers that are chosen, in the form that the commands write."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentlab.claims.claim import Claim
from latentlab.claims.evidence import Evidence
from latentlab.claims.registry import CLAIMS
from latentlab.claims.verdict import Verdict

NOISE = (-0.02, 0.0, 0.02)
"""Relative differences of three seeds."""

WILD = (-0.6, 0.1, 0.9)
"""Of three seeds that agree on nothing."""


def judged(identity: str, studies: Path) -> Verdict:
    claim: Claim = CLAIMS[identity]
    return claim.verdict(Evidence(studies))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def around(value: float, noise: Sequence[float] = NOISE) -> list[float]:
    return [value * (1 + one) for one in noise]


def cell(seed: int, distance: float, **more: Any) -> dict[str, Any]:
    return {
        "label": "x", "seed": seed, "error": None, "losses": {}, "training": None,
        "distance": {"name": "fd_efficientnet_lite0", "value": distance, "interval": None, "n": 500, "warnings": []},
        "geometry": {"latent_norm": more.pop("norm", 2.0), "raw_norm": 1.0, "nearest_angle": 40.0},
        "sampling": {"images": 500, "evaluations_per_image": more.pop("evaluations", 50.0)},
        **more,
    }  # fmt: skip


def failed(seed: int) -> dict[str, Any]:
    return {"label": "x", "seed": seed, "error": "training: diverged", "log": "x.log"}


def grid(path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], weights: str | None = None) -> None:
    """Write what `latentlab ablate` writes: label -> cells."""
    same: dict[str, Any] = {"train": {}, "sample": {}, "published": {}, "note": ""}
    listed = [{"label": label, **same, "cells": list(cells)} for label, cells in rows.items()]
    write(
        path / "results.json",
        {
            "schema_version": 1, "command": "latentlab ablate made-up", "base": None if weights else "mind-ablation",
            "weights": weights, "samples": 500, "extractor": "efficientnet-lite0", "seeds": 3,
            "reference": {"name": "fashion:test", "fingerprint": "x", "n": 10000}, "rows": listed,
        },
    )  # fmt: skip


def cells(distances: Sequence[float], **more: Any) -> list[dict[str, Any]]:
    return [cell(seed, one, **more) for seed, one in enumerate(distances)]


def entrant(label: str, kind: str, distances: Sequence[float], **more: Any) -> dict[str, Any]:
    runs = []
    for seed, one in enumerate(distances):
        score = {"value": one, "interval": [one - 1, one + 1], "n": 1400, "warnings": []}
        quality = {"fd_efficientnet_lite0": score, "precision_efficientnet_lite0": {**score, "value": 0.5}}
        points = [{"scale": scale, "error": None, "quality": quality} for scale in (1.0, 2.0)]
        runs.append({"seed": seed, "error": None, "log": "x", "curve": [], "guidance": points})
    return {"label": label, "kind": kind, "tokenizer": "kl", "parameters": 1_100_000, "train": {}, "runs": runs, **more}


def comparison(path: Path, *entrants: Mapping[str, Any]) -> None:
    """Write what `latentlab study generators` writes."""
    write(
        path / "results.json",
        {
            "schema_version": 1, "command": "latentlab study generators", "samples": 1400, "seeds": 3,
            "extractor": "efficientnet-lite0", "reference": {"name": "fashion:test", "fingerprint": "x", "n": 10000},
            "generators": list(entrants), "floors": {},
        },
    )  # fmt: skip
