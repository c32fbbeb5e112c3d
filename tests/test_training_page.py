"""docs/training.md: its files exist, its commands name what there is, and its Python runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentlab import load_tokenizer
from latentlab.tokenizers.config import load_config
from latentlab.tokenizers.maetok_training import build_maetok

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text()

SMALL = {
    "image_size": 32, "encoder_model": "vit_small_patch14_dinov2", "decoder_model": "vit_small_patch14_dinov2_movqv2",
    "enc_patch_size": 8, "dec_patch_size": 8, "num_latent_tokens": 4, "use_ape": False, "use_rope": True, "rope_mixed": True,
    "codebook_embed_dim": 8, "embed_dim": 32, "depth": 1, "num_heads": 2, "stage": "decoder", "vq_std": 0.5,
}  # fmt: skip


def test_files_and_configurations_are_there() -> None:
    named = re.findall(r"`((?:latentlab|studies)/[\w/.-]+)`", PAGE)
    assert len(named) >= 5 and all((ROOT / name).exists() for name in named)
    for name in re.findall(r"--config ([a-z-]+) ", PAGE):
        load_config(name)


def test_the_python_of_the_page_writes_the_published_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    trained = build_maetok(SMALL, name="maetok", release="test")
    weights = tmp_path / "runs" / "embedded" / "maetok" / "tokenizer.safetensors"
    weights.parent.mkdir(parents=True)
    header = {"architecture": json.dumps(SMALL), "name": "maetok", "release": "test", "family": "maetok"}
    save_file(trained.released_state(), weights, metadata=header)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    written, images = (
        load_tokenizer("maetok", weights=Path("published") / "model.safetensors"),
        torch.rand(2, 3, 32, 32),
    )
    torch.testing.assert_close(written.encode(images), trained.encode(images), atol=1e-6, rtol=0)
    assert written.spec.scale == (2.0,)
