"""One measurement of held-out latents: a measurement that is added to a study later computes itself only."""

from typing import Any

from analyses.embedding import umap_points
from latentlab.analyze import Inputs, measure_all
from latentlab.codec import codec_of
from latentlab.errors import UserError
from latentlab.files import write_json
from latentlab.finished import FinishedSteps
from latentlab.pixels import SetPixels
from latentlab.registry import checked_parameters, find_measurement, keyword_parameters, missing_needs
from latentlab.store import LatentStore
from latentlab.study.cells.process import CellRun
from latentlab.study.stages.inputs import latents_of, open_own_images, open_own_tokenizer

DETAILS = "details.json"
"""What figures are drawn from."""

_OF_TOKENIZER = {"encode", "decode", "codebook"}


def measure(cell: CellRun) -> dict[str, Any]:
    """Measure; latents that cannot have this property (codes of a continuous tokenizer) are no failure, and the reason is kept.

    Raises:
        UserError: the measurement cannot be made of these latents for another reason.
    """
    name = cell.settings["measurement"]
    inputs = _inputs(cell, name)
    if lacking := missing_needs(name, inputs.latents, inputs.offered()):
        return {"refused": f"these latents have no {' and no '.join(lacking)}"}
    outcome = measure_all(inputs, [name], FinishedSteps(cell.folder / "measurements"))
    if outcome.unmeasurable:
        return {"refused": outcome.refused[name]}
    if outcome.refused:
        raise UserError(outcome.refused[name])
    (found,) = outcome.measurements
    told = found.to_dict()
    write_json(cell.folder / DETAILS, told["details"])
    kept = ("value", "interval", "companions", "n", "variant", "direction", "unit", "warnings")
    return {"refused": None, "details": DETAILS, **{key: told[key] for key in kept}}


def latent_map(cell: CellRun) -> dict[str, Any]:
    """Lay held-out latents out in the plane by UMAP, for a picture."""
    latents = LatentStore(latents_of(cell))
    points, labels = umap_points(latents, n=cell.settings["n"], seed=cell.settings["seed"])
    told = {
        "points": points.round(4).tolist(),
        "labels": [0] * len(points) if labels is None else labels.tolist(),
        "class_names": list(latents.class_names or ()),
    }
    write_json(cell.folder / DETAILS, told)
    return {"details": DETAILS, "n": len(points)}


def _inputs(cell: CellRun, name: str) -> Inputs:
    """Open what the measurement looks at, and nothing else."""
    settings = cell.settings
    wanted = set(keyword_parameters(find_measurement(name)))
    codec = codec_of(open_own_tokenizer(cell), cell.device) if wanted & _OF_TOKENIZER else None
    images = SetPixels(open_own_images(cell)) if "images" in wanted else None
    options = {name: checked_parameters(name, settings["parameters"])}
    return Inputs(LatentStore(latents_of(cell)), settings["seed"], cell.device, images, codec, options)
