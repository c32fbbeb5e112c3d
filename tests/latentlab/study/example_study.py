"""A made-up study whose answers are known: quality follows ``m_viv``, and ``m_cds`` says nothing.

A hidden ease u in [0,1] of every tokenizer decides: ``m_viv`` = 2 - u, ``gfd_fashion_classifier`` = 30 - 20 u + noise.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from latentlab.registry import card_of
from latentlab.study.collect_columns import IDENTITY, values_of
from latentlab.study.table import Column, StudyTable

CLUSTERS = ("baseline", "kl", "repa", "eq", "lcr", "lmr", "mae", "vq")


def _measured(name: str) -> dict[str, Any]:
    card = card_of(name)
    told = {"variant": "default", "unit": card.unit, "direction": card.better}
    return {"refused": "", "value": 1, "interval": None, "companions": {}, **told}


def columns_of(results: Mapping[str, Mapping[str, Any]]) -> tuple[Column, ...]:
    """Return the columns that a real study has for results of its cells, by their role to a row."""
    return tuple(one.column for role, result in results.items() for one in values_of(role, result))


_TOLD = {"value": 1, "interval": None}
COLUMNS = (
    *IDENTITY,
    *columns_of({f"measure {name}": _measured(name) for name in ("viv", "lnc", "srss", "cds")}),
    *columns_of({
        "reconstruct": {"scores": {"psnr": _TOLD}},
        "reconstruction_distance fashion-classifier": {"rfd_fashion_classifier": 1},
        "decoder": {"decoder_sensitivity": 1},
        "evaluate fashion-classifier": {"gfd_fashion_classifier": 1},
        "evaluate efficientnet-lite0": {"gfd_efficientnet_lite0": 1},
        "latent_distance": {"fd_latents": 1, "fd_latents_floor": 1},
        "train_generator": {"held_out_loss": 1},
        "trajectories": {"paths": {"straightness": _TOLD, "efficiency": _TOLD}},
        "sample": {"n": 5000},
    }),
    Column("minutes", "cost", "Time of the cell.", "min"),
    Column("error", "status", "Why the cell failed; empty if it did not."),
)  # fmt: skip


def example_study(
    tokenizers: int = 24, generators: tuple[str, ...] = ("sit", "lightningdit"), seeds: int = 2, noise: float = 0.3
) -> StudyTable:
    """Return the study; the same for the same arguments."""
    rng = np.random.default_rng(7)
    rows = []
    for number in range(tokenizers):
        ease, empty = rng.uniform(), rng.uniform()
        facts = {
            "tokenizer": f"tokenizer-{number:02d}",
            "tokenizer_seed": 0,
            "cluster": CLUSTERS[number % len(CLUSTERS)],
            "family": "conv" if number % 3 else "transformer",
            "control": "",
            "control_of": "",
            "held_out": number % 4 == 3,
            "m_viv": 2 - ease,
            "m_viv_low": 1.95 - ease,
            "m_viv_high": 2.05 - ease,
            "m_lnc": 0.5 + 0.3 * ease + 0.02 * rng.normal(),
            "m_srss": 0.2 + 0.1 * rng.normal(),
            "m_cds": empty,
            "psnr": 24 + rng.normal(),
            "rfd_fashion_classifier": 2 + 0.2 * rng.normal(),
            "decoder_sensitivity": 1 + 0.2 * rng.normal(),
        }
        for generator in generators:
            for seed in range(seeds):
                for guidance in (1.0, 1.5, 2.0):
                    shift = 5 * (generator != "sit") + 2 * (guidance - 1.5) ** 2
                    gfd = 30 - 20 * ease + shift + noise * rng.normal()
                    rows.append(
                        {
                            **facts,
                            "generator": generator,
                            "generator_seed": seed,
                            "guidance": guidance,
                            "gfd_fashion_classifier": gfd,
                            "gfd_efficientnet_lite0": 2 * gfd + noise * rng.normal(),
                            "fd_latents": gfd + 10,
                            "fd_latents_floor": 1 + 0.1 * number,
                            "held_out_loss": 1 - 0.2 * ease + 0.01 * rng.normal(),
                            "straightness": 0.8 + 0.1 * ease + 0.005 * rng.normal(),
                            "efficiency": 0.7 + 0.1 * ease + 0.005 * rng.normal(),
                            "n_samples": 5000,
                            "minutes": 12.0,
                            "error": "",
                        }
                    )
    return StudyTable(pd.DataFrame(rows), COLUMNS)
