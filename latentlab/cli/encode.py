"""``latentlab encode``: images through a tokenizer into a latent store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentlab.cli.options import (
    ArchitectureFields,
    AsJson,
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
    parsed_settings,
)
from latentlab.errors import UserError

if TYPE_CHECKING:
    from latentlab.data import ImageSet
    from latentlab.store import LatentStore


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
    architecture: ArchitectureFields = None,
    image_size: ImageSize = None,
    masks: Masks = None,
    skip_bad: SkipBad = False,
    device: Device = "auto",
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Encode images into a folder of latents.

    The folder holds safetensors shards in LightningDiT's layout and store.json; its trainer needs --flip, and images in one
    folder per class for their labels. An interrupted run continues where it stopped; a finished one with the same input is
    left as it is, and reported as reused. Under torchrun the processes share the images; the latents are the same for any
    number of them.
    """
    at_least("--limit", limit, 1)
    at_least("--batch-size", batch_size, 1)
    check_folder("--out", out)
    fields = parsed_settings(architecture, "--architecture")

    from latentlab.data import open_data
    from latentlab.encoding import default_batch_size, encode_images, open_tokenizer, store_request
    from latentlab.ranks import joined_ranks
    from latentlab.runtime import choose_device, prepare_threads

    where = choose_device(device)
    prepare_threads()
    model = open_tokenizer(tokenizer, data, weights=weights, release=release, architecture=fields, device=where)
    images = open_data(data, image_size=image_size, limit=limit, masks=masks, skip_bad=skip_bad, seed=seed)
    size = batch_size or default_batch_size(images.image_size, where)
    request = store_request(model, images, dtype, (seed, size) if sample else None, flip, precision)
    reused = _is_finished(out, request, with_masks=images.has_masks)
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
        _report(store, images, out, reused, json)


def _report(store: "LatentStore", images: "ImageSet", out: Path, reused: bool, json: bool) -> None:
    """Print what is in the folder now, and whether it was there before."""
    if json:
        import json as codec

        found = {
            "path": str(out),
            "reused": reused,
            "n": store.n,
            "shape": list(store.shape),
            "mirrored": store.has_mirrored,
            "tokenizer": None if store.spec is None else store.spec.to_dict(),
            "skipped_images": list(images.skipped),
        }
        print(codec.dumps(found, indent=1))
        return
    if images.skipped:
        print(f"skipped  {len(images.skipped)} unreadable images, the first: {images.skipped[0]}")
    mirrored = ", and mirrored" if store.has_mirrored else ""
    kept = ": finished before, and nothing has changed since" if reused else ""
    print(
        f"{'reused ' if reused else 'latents'}  {store.n:,} of {' x '.join(map(str, store.shape))} in {out}{mirrored}{kept}"
    )


def _is_finished(out: Path, request: dict[str, Any], with_masks: bool) -> bool:
    """Return whether the folder holds finished latents of this very request.

    Raises:
        UserError: it holds those of another one, finished or not, or of another version: hours of work must not go by a slip.
    """
    from latentlab.files import first_difference
    from latentlab.store import open_if_current
    from latentlab.store_layout import held

    try:
        there = held(out)
    except UserError as error:
        raise UserError(f"{error}; choose another --out, or delete {out}") from error
    if there is None:
        return False
    if difference := first_difference(there.request, request):
        if with_masks != there.with_masks:
            difference = (
                f"{'without' if with_masks else 'with'} --masks there, {'with' if with_masks else 'without'} here"
            )
        state = "finished" if there.finished else "unfinished"
        raise UserError(
            f"{out} holds {state} latents of another request ({difference}): choose another --out, or delete it"
        )
    return open_if_current(out, request) is not None
