"""Where commands are tried: an empty folder, weights and latents in it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentlab import analysis_figures
from latentlab.tokenizers import build_tokenizer

from .commands import TINY


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with an empty cache, without a network, and with quick figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("LATENTLAB_DEBUG", raising=False)
    monkeypatch.setattr(analysis_figures, "UMAP_POINTS", 10)
    monkeypatch.setattr(analysis_figures, "SHOWN_IMAGES", 2)
    return tmp_path / "home"


@pytest.fixture
def here(home: Path, tmp_path: Path) -> Path:
    """The empty folder."""
    return tmp_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny IBQ tokenizer, random and with all that a release records."""
    torch.manual_seed(0)
    architecture = {**TINY, "quantizer": "ibq", "n_embed": 32}
    path = tmp_path_factory.mktemp("some weights") / "tiny.safetensors"
    header = {"architecture": json.dumps(architecture), "name": "ibq", "release": "tiny"}
    save_file(build_tokenizer(architecture).state_dict(), path, metadata=header)
    return path


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Latents as LightningDiT's feature extraction leaves them."""
    folder = tmp_path / "their features"
    folder.mkdir()
    rng = torch.Generator().manual_seed(0)
    tensors = {"latents": torch.randn(60, 4, 4, 4, generator=rng), "labels": torch.arange(60) % 3}
    tensors["latents_flip"] = tensors["latents"].flip(3)
    save_file(tensors, folder / "latents_rank00_shard000.safetensors")
    return folder
