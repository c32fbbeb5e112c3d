"""Rebuild the tokenizers that ship with the package, and the table of how well they reconstruct.

``python -m latentlab.tokenizers.embedded train`` trains every shipped tokenizer, continuing what was interrupted;
``... scores`` measures the shipped weights on the Fashion-MNIST test set and writes the table.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from latentlab.codec import codec_of
from latentlab.configuration import shipped_configs
from latentlab.data import open_data
from latentlab.data.base import ImageSet
from latentlab.errors import UserError, run_module
from latentlab.files import atomic_path, write_text
from latentlab.measurement import Estimate
from latentlab.pixels import SetPixels, as_pixels
from latentlab.quality.fidelity import to_uint8
from latentlab.quality.generation import generation_distance
from latentlab.quality.reconstruction import reconstruction_scores
from latentlab.tokenizers.base import Tokenizer
from latentlab.tokenizers.config import CONFIGS, TrainConfig, load_config
from latentlab.tokenizers.load import load_tokenizer
from latentlab.tokenizers.releases import ZOO
from latentlab.tokenizers.zoo import embedded_path

RUNS = Path("runs/embedded")
TABLE = Path("docs/embedded_tokenizers.md")
IMAGES: int | None = None
"""Test images that are scored; None for all of them."""

_AT_ONCE = 2

_INTRODUCTION = """# Embedded tokenizers

Trained on Fashion-MNIST padded to 32x32 by `make weights` from the configurations in `latentlab/configs/tokenizers/`;
scores on the {n:,} test images by `make scores`. PSNR in dB and SSIM: higher is closer to the original; ST-LPIPS (AlexNet):
lower. Codebook usage is the share of codes chosen at least once, perplexity the number of equally used codes with the same
entropy. 95 % bootstrap intervals over images in brackets.

rfd is the Frechet distance between the features of the reconstructions and of the same {n:,} images, on the classifier of
Fashion-MNIST ([fashion_classifier.md](fashion_classifier.md)), which no tokenizer was trained with: lower is closer.
Tokenizers are to be compared at equal reconstruction: rfd_ratio is the distance over that of `ae`.

All eight are matched: trained for as many steps as each needs (2,000 to 12,000; `maetok` 10,000 and 8,000), their distances are
within 20 % of each other, and the intervals of all overlap. Codes are no obstacle to that, but take longer
(`vq` was at 2.59 times the distance of `ae` after 2,000 steps), and in `ibq` lighter losses of the codes: with commitment 1 and
entropy 0.1, four and five times those of now, it was at 1.6 times after 8,000. Nor is an encoder that learned from images half of
which was hidden, and was then frozen: with patches of 4x4 pixels `maetok` is matched, with 8x8, after as many steps of either
stage, it was at 3.12 times. What is matched is this distance: in PSNR and ST-LPIPS `maetok`, `ibq` and `vq` remain behind the
other five.

"""


_JUDGE = "fashion-classifier"


def embedded_names() -> list[str]:
    """Return the names of the tokenizers that ship; configurations of earlier stages of a training are not among them."""
    configured = [file.stem.partition("_")[0] for file in sorted(CONFIGS.glob("*.yaml"))]
    return [name for name in configured if any(release.embedded for release in ZOO.get(name, ()))]


def train_all(names: Sequence[str]) -> None:
    """Train ``names`` in processes of one thread (two of them beat one of two threads at this size) and ship the weights.

    The longest training starts first, so that no process is left alone with it at the end.

    Raises:
        UserError: some trainings failed; the weights of all others are shipped nevertheless.
    """
    ordered = sorted(names, key=_images_seen, reverse=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        status = dict(zip(ordered, pool.map(_train_one, ordered), strict=True))
    for name in names:
        if status[name] == 0:
            with atomic_path(embedded_path(name, _config(name).release)) as temporary:
                shutil.copyfile(RUNS / name / "tokenizer.safetensors", temporary)
    if failed := [f"{name} ({_last_line(name)})" for name in names if status[name]]:
        raise UserError(
            f"training failed for {', '.join(failed)}; all is in {RUNS}/<name>.log, and the others are shipped"
        )


def _last_line(name: str) -> str:
    lines = (RUNS / f"{name}.log").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _config_file(name: str) -> Path:
    return shipped_configs(CONFIGS)[name]


def _config(name: str) -> TrainConfig:
    return load_config(_config_file(name))


def _images_seen(name: str) -> int:
    """Return how many images a training sees, with those of the stages before it: about how long it takes."""
    config = _config(name)
    earlier = 0 if config.start_from is None else _images_seen(config.start_from.parent.name)
    return earlier + config.optimiser.steps * config.optimiser.batch_size


def _train_one(name: str) -> int:
    """Train one, after the stage that it starts from; return the exit status."""
    start = _config(name).start_from
    if start is not None and (failed := _train_one(start.parent.name)):
        return failed
    RUNS.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "latentlab", "train", "tokenizer", "--config", str(_config_file(name))]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(RUNS / f"{name}.log", "a", encoding="utf-8") as log:
        return subprocess.run(
            [*command, "--out", str(RUNS / name), "--device", "cpu"],
            stdout=log, stderr=log, env={**os.environ, **one_thread}, check=False,
        ).returncode  # fmt: skip


def scores_table(names: Sequence[str]) -> pd.DataFrame:
    """Return one row of reconstruction scores per embedded tokenizer."""
    images = open_data("fashion:test", limit=IMAGES)
    rows, distances = {}, {}
    for name in ["ae", *(name for name in names if name != "ae")]:
        tokenizer = load_tokenizer(name, release="fashion32")
        scores = {**reconstruction_scores(tokenizer, images), "rfd": _distance(tokenizer, images)}
        rows[name] = {label: _told(estimate) for label, estimate in scores.items()}
        distances[name] = scores["rfd"].value
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    table["rfd_ratio"] = [f"{distances[name] / distances['ae']:.2f}" for name in table.index]
    table = table.loc[list(names)]
    table.attrs["n"] = images.n
    return table


def _distance(tokenizer: Tokenizer, images: ImageSet) -> Estimate:
    """Return the Frechet distance between reconstructions and images on the features of the judge."""
    originals, codec = SetPixels(images), codec_of(tokenizer, "cpu")
    made = as_pixels(torch.cat([to_uint8(codec.decode(codec.encode(batch))) for batch in originals.batches()]))
    distance = generation_distance(made, originals, _JUDGE)
    return Estimate(distance.value, distance.interval)


def _told(estimate: Estimate) -> str:
    ends = estimate.interval
    return f"{estimate.value:.4g}" + (f" [{ends[0]:.4g}, {ends[1]:.4g}]" if ends else "")


def write_scores(names: Sequence[str]) -> None:
    """Write the table of scores as Markdown."""
    table = scores_table(names)
    head = ["tokenizer", *table.columns]
    lines = [
        head,
        ["---"] * len(head),
        *([name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)),
    ]
    body = "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
    write_text(TABLE, _INTRODUCTION.format(n=table.attrs["n"]) + body)


def main(arguments: Sequence[str]) -> None:
    """Run ``train [NAME ...]`` or ``scores``.

    Raises:
        UserError: neither of these, an unknown name, or a training that failed.
    """
    task, *names = arguments or [""]
    unknown = set(names) - set(embedded_names())
    if task not in ("train", "scores") or unknown:
        raise UserError(f"usage: embedded train|scores [{'|'.join(embedded_names())} ...]")
    (train_all if task == "train" else write_scores)(names or embedded_names())


if __name__ == "__main__":
    run_module(main)
