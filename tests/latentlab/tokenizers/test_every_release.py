"""Every release whose network is the one of `latentlab.tokenizers.ldm`: a narrow checkpoint as published, and one that is wrong.

The other networks have the same tests in the files named after them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError
from latentlab.tokenizers import build_tokenizer, load_tokenizer
from latentlab.tokenizers.autoencoder import Autoencoder, PatchNormalisedAutoencoder
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.zoo import ZOO, find_release

RELEASES = [
    (name, release.name)
    for name, releases in ZOO.items()
    for release in releases
    if release.family == "ldm" and not release.embedded
]
IBQ = 110_982_019
"""Parameters with 16384 codes of 256 numbers."""


def narrow_fields(release: Release) -> dict[str, Any]:
    """What makes the published network small; everything else about it stays."""
    fields: dict[str, Any] = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1}
    if (release.architecture or {}).get("n_embed"):
        fields["n_embed"] = 12
    if (release.architecture or {}).get("decoder_ch"):
        fields["decoder_ch"] = 64
    return fields


def narrow(release: Release) -> Autoencoder:
    torch.manual_seed(0)
    tokenizer = build_tokenizer({**(release.architecture or {}), **narrow_fields(release)})
    if isinstance(tokenizer, PatchNormalisedAutoencoder):
        tokenizer.bn.running_mean.normal_()
        tokenizer.bn.running_var.uniform_(0.5, 2.0)
    return tokenizer.eval()


def publish(folder: Path, release: Release, state: dict[str, Tensor]) -> Path:
    """Write a file under its published name, pickled in Lightning's way where the published one is a pickle."""
    assert release.weights is not None
    path = folder / release.weights.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3}, path)
    return path


def pictures() -> Tensor:
    return torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("name", "release"), RELEASES)
def test_a_narrow_checkpoint_in_the_published_place_loads_and_normalises(
    name: str, release: str, tmp_path: Path
) -> None:
    known = find_release(name, release)
    expected, fields = narrow(known), narrow_fields(known)
    publish(tmp_path, known, expected.state_dict())
    tokenizer = load_tokenizer(name, weights=tmp_path, release=release, architecture=fields)
    expected.to(memory_format=torch.channels_last)  # as loaded ones are: equal to the last bit
    latents = tokenizer.encode(pictures())
    torch.testing.assert_close(latents, expected.encode(pictures()), atol=0, rtol=0)
    torch.testing.assert_close(tokenizer.decode(latents), expected.decode(latents), atol=0, rtol=0)
    assert (tokenizer.spec.name, tokenizer.spec.release) == (name, known.label(ema=not known.averaged))
    if isinstance(tokenizer, PatchNormalisedAutoencoder):  # by the statistics in its file: see test_flux.py
        torch.testing.assert_close(tokenizer.normalize(latents), expected.normalize(latents))
    else:
        shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (known.shift, known.scale))
        torch.testing.assert_close(tokenizer.normalize(latents), (latents - shift) * scale)
    torch.testing.assert_close(tokenizer.denormalize(tokenizer.normalize(latents)), latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "release"), RELEASES)
def test_wrong_keys_are_one_error_that_names_them(name: str, release: str, tmp_path: Path) -> None:
    known = find_release(name, release)
    state = narrow(known).state_dict()
    state["decoder.conv_in.extra"] = torch.zeros(3)
    del state["encoder.conv_out.bias"]
    path = publish(tmp_path, known, state)
    with pytest.raises(UserError) as caught:
        load_tokenizer(name, weights=tmp_path, release=release, architecture=narrow_fields(known))
    message = str(caught.value)
    assert message.startswith(f"{path} for '{name}' does not fit the architecture: ") and "\n" not in message
    assert "1 missing (encoder.conv_out.bias)" in message and "1 unexpected (decoder.conv_in.extra)" in message


@pytest.mark.parametrize(
    ("name", "release", "parameters"),
    [
        ("ibq", "imagenet256", IBQ),
        ("ibq", "imagenet256-1024", IBQ - (16384 - 1024) * 256),
        ("ibq", "imagenet256-8192", IBQ - 8192 * 256),
        ("ibq", "imagenet256-262144", IBQ + (262144 - 16384) * 256),
        ("ibq", "pretrain-16384", IBQ),
        ("ibq", "pretrain-262144", IBQ + (262144 - 16384) * 256),
        ("vqgan-f16", "imagenet256", 76_073_859),
        ("va-vae", "imagenet256", 69_836_067),
        ("mar-kl16", "imagenet256", 66_456_019),
    ],
)
def test_full_size_counts(name: str, release: str, parameters: int) -> None:
    """Published, or that with another number of codes; listed sizes in MB are four bytes each (IBQ: twice, raw and averaged)."""
    known = find_release(name, release)
    with torch.device("meta"):
        tokenizer = build_tokenizer(known.architecture or {})
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == parameters
    if name == "ibq":
        assert known.weights is not None and known.weights.megabytes == pytest.approx(8 * parameters / 1e6, abs=1)
