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
    flip: Annotated[bool, typer.Option("--flip", help="Encode every image mirrored too, as latents_flip.")] = False,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option("--precision", help="Precision of the tokenizer; bfloat16 is autocast, for GPUs."),
    ] = "float32",
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
    stopped; a finished one with the same input is left as it is. Under torchrun the processes share the images; the latents
    are the same for any number of them.
    """
    at_least("--limit", limit, 1)
    at_least("--batch-size", batch_size, 1)
    at_least("--seed", seed, 0)
    check_folder("--out", out)

    from latentlab.data import open_data
    from latentlab.encoding import encode_images, open_tokenizer
    from latentlab.ranks import joined_ranks
    from latentlab.runtime import choose_device, prepare_threads

    where = choose_device(device)
    prepare_threads()
    model = open_tokenizer(tokenizer, data, weights=weights, release=release, device=where)
    images = open_data(data, image_size=image_size, limit=limit, masks=masks, skip_bad=skip_bad, seed=seed)
    with joined_ranks() as ranks:
        store = encode_images(
            model,
            images,
            out,
            batch_size=batch_size,
            device=where,
            dtype=dtype,
            sample=sample,
            seed=seed,
            flip=flip,
            precision=precision,
            ranks=ranks,
        )
    if ranks.first:
        if images.skipped:
            print(f"skipped  {len(images.skipped)} unreadable images, the first: {images.skipped[0]}")
        mirrored = ", and mirrored" if store.has_mirrored else ""
        print(f"latents  {store.n:,} of {' x '.join(map(str, store.shape))} in {out}{mirrored}")
