"""A made-up study whose answers are known: quality follows ``m_viv``, and ``m_cds`` says nothing.

A hidden ease u in [0,1] of every tokenizer decides: ``m_viv`` = 2 - u, ``gfd_fashion_classifier`` = 30 - 20 u + noise.
"""

import numpy as np
import pandas as pd

from latentlab.study.table import Column, StudyTable

CLUSTERS = ("baseline", "kl", "repa", "eq", "lcr", "lmr", "mae", "vq")
COLUMNS = (
    Column("tokenizer", "identity", "Label of the tokenizer."),
    Column("tokenizer_seed", "identity", "Seed of its training."),
    Column("cluster", "identity", "Kind of regulariser."),
    Column("family", "identity", "Architecture."),
    Column("control", "identity", "Transformation of the latents that made it out of another tokenizer."),
    Column("control_of", "identity", "The other tokenizer."),
    Column("held_out", "identity", "Whether it is kept from fitting."),
    Column("generator", "identity", "Label of the generator."),
    Column("generator_seed", "identity", "Seed of its training and draws."),
    Column("guidance", "identity", "Guidance scale."),
    Column("m_viv", "measurement", "Velocity irreducible variance.", "", "lower"),
    Column("m_lnc", "measurement", "Local neighbour consistency.", "", "higher"),
    Column("m_srss", "measurement", "Spatial structure.", "", "higher"),
    Column("m_cds", "measurement", "A measurement that says nothing.", "", "higher"),
    Column("psnr", "reconstruction", "Of held-out images.", "dB", "higher"),
    Column("rfd_fashion_classifier", "reconstruction", "Frechet distance of reconstructions.", "", "lower"),
    Column("decoder_sensitivity", "decoder", "Image change per latent noise.", "", "lower"),
    Column("gfd_fashion_classifier", "quality", "Frechet distance of samples to the training set.", "", "lower"),
    Column("gfd_efficientnet_lite0", "quality", "The same on EfficientNet-Lite0.", "", "lower"),
    Column("held_out_loss", "quality", "Loss of the generator on held-out latents.", "", "lower"),
    Column("straightness", "trajectory", "Of the learned ODE.", "", "higher"),
    Column("efficiency", "trajectory", "Of the learned ODE.", "", "higher"),
    Column("n_samples", "count", "Samples per cell."),
    Column("minutes", "cost", "Time of the cell.", "min"),
    Column("error", "status", "Why the cell failed; empty if it did not."),
)


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
                            "held_out_loss": 1 - 0.2 * ease + 0.01 * rng.normal(),
                            "straightness": 0.8 + 0.1 * ease + 0.005 * rng.normal(),
                            "efficiency": 0.7 + 0.1 * ease + 0.005 * rng.normal(),
                            "n_samples": 5000,
                            "minutes": 12.0,
                            "error": "",
                        }
                    )
    return StudyTable(pd.DataFrame(rows), COLUMNS)
