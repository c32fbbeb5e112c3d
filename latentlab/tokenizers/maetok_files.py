"""A trained MAETok as the authors publish theirs: ``model.safetensors`` and a flat ``config.json`` in one folder."""

from pathlib import Path

from safetensors.torch import save_file

from latentlab.files import atomic_path, write_json
from latentlab.tokenizers.maetok_training import TrainableMAETok


def save_published(tokenizer: TrainableMAETok, folder: Path) -> Path:
    """Write both files; return the path of the weights, which `load_tokenizer` takes.

    Where width, depth or heads are not those of the transformers' names, ``config.json`` has the fields ``embed_dim``, ``depth``
    and ``num_heads``, which published files do not have: readers other than latentlab need the full size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors"
    weights = {name: value.detach().cpu().contiguous() for name, value in tokenizer.released_state().items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary)
    write_json(folder / "config.json", tokenizer.architecture.published)
    return path
