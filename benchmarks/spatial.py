"""LDS, CDS, SRSS and RMSC of 10,000 latents of 32 x 16 x 16 against torch: ``python benchmarks/spatial.py``.

The peers form the 256 x 256 cosine similarities of each image with one batched product, 32 images at a time so that they stay in
the cache, in the float32 of the latents and on all threads; the means are then taken with boolean masks. The tuned peers know
that a product with a matrix of 0 and 1 is the fastest way to add up what is in a mask. All of them normalise by sums of
squares. Ours include the bootstrap interval and the similarity at every distance, the peers do without.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from common import SHAPE, compare, peak_memory, print_setting, synthetic_latents
from torch import Tensor

import latentlab

N = 10_000
BATCH = 32

row, column = torch.meshgrid(torch.arange(SHAPE[1]), torch.arange(SHAPE[2]), indexing="ij")
DISTANCE = (row.reshape(-1, 1) - row.reshape(1, -1)).abs() + (column.reshape(-1, 1) - column.reshape(1, -1)).abs()


def data(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return latents, and masks on their grid: a rectangle of each image."""
    rng = np.random.default_rng(0)
    corner, size = rng.integers(0, 6, (2, n, 2))[..., None, None] + np.array([0, 8])[:, None, None, None, None]
    inside = [
        (cells >= corner[:, axis]) & (cells < corner[:, axis] + size[:, axis])
        for axis, cells in enumerate(np.ogrid[: SHAPE[1], : SHAPE[2]])
    ]
    return synthetic_latents(n, 10)[0], inside[0] & inside[1]


def ours(name: str, latents: np.ndarray, masks: np.ndarray) -> float:
    return latentlab.measure(name, latents, masks=masks if name == "srss" else None).value


def similarities(latents: np.ndarray) -> Iterator[Tensor]:  # => [b,s,s]
    z = torch.from_numpy(latents).flatten(2)
    mean = z.mean((0, 2))[:, None]
    count = z.numel() / z.shape[1]
    std = ((z.square().sum((0, 2))[:, None] - count * mean**2) / (count - 1)).sqrt()
    for batch in z.split(BATCH):
        units = torch.nn.functional.normalize((batch - mean) / std, dim=1)
        yield units.transpose(1, 2) @ units


def lds_peer(latents: np.ndarray, _: np.ndarray) -> float:
    near, far = DISTANCE == 1, DISTANCE >= 6
    return float(torch.cat([k[:, near].mean(1) - k[:, far].mean(1) for k in similarities(latents)]).mean())


def lds_tuned(latents: np.ndarray, _: np.ndarray) -> float:
    near, far = (DISTANCE == 1).float(), (DISTANCE >= 6).float()
    weights = (near / near.sum() - far / far.sum()).flatten()
    return float(torch.cat([k.flatten(1) @ weights for k in similarities(latents)]).mean())


def slope(g: Tensor) -> float:  # [n,8]
    delta = torch.arange(1, 9) - 4.5
    return -float((g @ delta / delta.square().sum()).mean())


def cds_peer(latents: np.ndarray, _: np.ndarray) -> float:
    at = [delta == DISTANCE for delta in range(1, 9)]
    return slope(torch.cat([torch.stack([k[:, mask].mean(1) for mask in at], dim=1) for k in similarities(latents)]))


def cds_tuned(latents: np.ndarray, _: np.ndarray) -> float:
    at = torch.stack([delta == DISTANCE for delta in range(1, 9)], dim=-1).float().flatten(0, 1)
    return slope(torch.cat([k.flatten(1) @ (at / at.sum(0)) for k in similarities(latents)]))


def contrast(positive: Tensor, positives: Tensor, negative: Tensor, negatives: Tensor, foreground: Tensor) -> Tensor:
    """Return SRSS of every image, [b], from sums and counts over the partners of each cell, [b,s]."""
    anchors = foreground & (positives > 0) & (negatives > 0)
    values = positive / positives.clamp_min(1) - negative / negatives.clamp_min(1)
    return (values * anchors).sum(1) / anchors.sum(1)


def srss_peer(latents: np.ndarray, masks: np.ndarray) -> float:
    near, far = DISTANCE == 1, DISTANCE >= 6
    values = []
    for k, foreground in zip(similarities(latents), torch.from_numpy(masks).flatten(1).split(BATCH), strict=True):
        positives, negatives = near & foreground[:, None], far & ~foreground[:, None]
        sums = [(k * chosen).sum(2) for chosen in (positives, negatives)]
        values.append(contrast(sums[0], positives.sum(2), sums[1], negatives.sum(2), foreground))
    return float(torch.cat(values).nanmean())


def srss_tuned(latents: np.ndarray, masks: np.ndarray) -> float:
    near, far = (DISTANCE == 1).float(), (DISTANCE >= 6).float()
    values = []
    for k, foreground in zip(similarities(latents), torch.from_numpy(masks).flatten(1).split(BATCH), strict=True):
        fg, bg = foreground.float(), (~foreground).float()
        positive, negative = ((k * chosen @ of[:, :, None])[:, :, 0] for chosen, of in ((near, fg), (far, bg)))
        values.append(contrast(positive, fg @ near, negative, bg @ far, foreground))
    return float(torch.cat(values).nanmean())


def rmsc_peer(latents: np.ndarray, _: np.ndarray) -> float:
    return float(torch.cat([(1 - k.mean((1, 2))).clamp_min(0).sqrt() for k in similarities(latents)]).mean())


PEERS: dict[str, list[Callable[[np.ndarray, np.ndarray], float]]] = {
    "lds": [lds_peer, lds_tuned],
    "cds": [cds_peer, cds_tuned],
    "srss": [srss_peer, srss_tuned],
    "rmsc": [rmsc_peer],
}


def prepare(n: int) -> tuple[np.ndarray, np.ndarray]:
    run_ours(data(100)), run_peer(data(100))
    return data(n)


def run_ours(inputs: tuple[np.ndarray, np.ndarray]) -> float:
    return ours("srss", *inputs)


def run_peer(inputs: tuple[np.ndarray, np.ndarray]) -> float:
    return srss_tuned(*inputs)


if __name__ == "__main__":
    print_setting()
    inputs = data(N)
    for name, peers in PEERS.items():
        for peer in peers:
            compare(f"{peer.__name__}", lambda name=name: ours(name, *inputs), lambda peer=peer: peer(*inputs))
    for run in (run_ours, run_peer):
        print(f"  {run.__name__} (srss): {peak_memory(prepare, run, N):.0f} MiB beside the latents")
