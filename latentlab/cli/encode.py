"""``latentlab encode``: images through a tokenizer into a latent store."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentlab.cli.options import (
    BatchSize,
    Data,
    Device,
    ImageSize,
    Limit,
    Masks,
    Release,
    Seed,
    SkipBad,
    TokenizerName,
    Weights,
    at_least,
    check_folder,
)


def encode(
    tokenizer: TokenizerName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the store.")],
    data: Data = "fashion:test",
    limit: Limit = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option("--dtype", help="Precision of the latents on disk.")
    ] = "float32",
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw from the posterior instead of taking its mode.")
    ] = False,
    batch_size: BatchSize = None,
    weights: Weights = None,
    release: Release = None,
    image_size: ImageSize = None,
    masks: Masks = None,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Encode images into a folder of latents.

    The folder holds safetensors shards in LightningDiT's layout and store.json. An interrupted run continues where it
    stopped; a finished one with the same input is left as it is.
    """
    at_least("--limit", limit, 1)
    at_least("--batch-size", batch_size, 1)
    at_least("--seed", seed, 0)
    check_folder("--out", out)

    from latentlab.data import open_data
    from latentlab.encoding import encode_images, open_tokenizer
    from latentlab.runtime import choose_device, prepare_threads

    where = choose_device(device)
    prepare_threads()
    model = open_tokenizer(tokenizer, data, weights=weights, release=release, device=where)
    images = open_data(data, image_size=image_size, limit=limit, masks=masks, skip_bad=skip_bad, seed=seed)
    store = encode_images(
        model, images, out, batch_size=batch_size, device=where, dtype=dtype, sample=sample, seed=seed
    )
    if images.skipped:
        print(f"skipped  {len(images.skipped)} unreadable images, the first: {images.skipped[0]}")
    print(f"latents  {store.n:,} of {' x '.join(map(str, store.shape))} in {out}")
