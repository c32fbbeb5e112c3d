"""Stages that lead to latents: a tokenizer is trained, found or transformed, and encodes images."""

from typing import Any

from latentlab.data.mirrored import MirroredImages
from latentlab.encoding import encode_images
from latentlab.errors import UserError
from latentlab.run_folder import RunFolder
from latentlab.store import LatentStore
from latentlab.study.cells.process import CellRun
from latentlab.study.stages.inputs import latents_of, open_own_images, open_own_tokenizer, tokenizer_choice
from latentlab.tokenizers.config import TrainConfig
from latentlab.tokenizers.controls import make_control
from latentlab.tokenizers.load import embedded_file, load_tokenizer
from latentlab.tokenizers.training import train
from latentlab.tokenizers.weight_metadata import read_weight_metadata
from latentlab.tokenizers.zoo import find_release, find_release_weights


def train_tokenizer(cell: CellRun) -> dict[str, Any]:
    """Train a tokenizer, or go on where an earlier attempt stopped."""
    told, places = dict(cell.settings["config"]), dict(cell.places)
    told["start_from"] = places.pop("start_from", None)
    config = TrainConfig.model_validate({**told, "data": {**told["data"], **places}})
    weights = train(config, cell.folder / "run", device=cell.device)
    scores = [line for line in RunFolder(cell.folder / "run").metrics() if "validation_psnr" in line]
    told = {"name": config.name, "release": config.release, "weights": str(weights.relative_to(cell.folder))}
    return {**told, "scores": scores[-1] if scores else {}}


def tokenizer_at_hand(cell: CellRun) -> dict[str, Any]:
    """Open published, embedded or given weights once, so that what is wrong with them is said here."""
    settings, weights = cell.settings, cell.places.get("weights")
    name = settings["name"]
    if weights is not None and (header := read_weight_metadata(cell.folder / weights)) is not None:
        name = header.name
    spec = load_tokenizer(name, weights=weights, release=settings["release"], device=cell.device).spec
    return {"name": name, "release": spec.release, "weights": weights}


def control(cell: CellRun) -> dict[str, Any]:
    """Transform the latents of a tokenizer: another tokenizer of the same reconstructions."""
    choice = tokenizer_choice(cell.needs["tokenizer"])
    weights = choice["weights"]
    if weights is None:
        release = find_release(choice["name"], choice["release"])
        weights = (
            embedded_file(choice["name"], release)
            if release.embedded
            else find_release_weights(choice["name"], release)
        )
    path = cell.folder / "tokenizer.safetensors"
    make_control(
        weights, cell.settings["control"], path, store=LatentStore(latents_of(cell)), seed=cell.settings["seed"]
    )
    header = read_weight_metadata(path)
    if header is None:
        raise UserError(f"{path} does not say what it holds: delete {cell.folder} and run the study again")
    return {"name": header.name, "release": header.release, "weights": path.name}


def encode(cell: CellRun) -> dict[str, Any]:
    """Encode images, as they are or mirrored left to right."""
    images = open_own_images(cell)
    chosen = MirroredImages(images) if cell.settings["mirrored"] else images
    store = encode_images(open_own_tokenizer(cell), chosen, cell.folder / "latents", device=cell.device)
    return {"latents": "latents", "n": store.n, "shape": list(store.shape)}
