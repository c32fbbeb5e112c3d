"""A tokenizer as two functions: the same numbers as the tokenizer's own, in any batch size, and a name for its weights."""

import pytest
import torch

from latentlab.codec import codec_of
from latentlab.tokenizers import build_tokenizer

TINY = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 4, "resolution": 32, "attn_resolutions": ()}


def tiny(quantizer: str, seed: int = 0):
    torch.manual_seed(seed)
    return build_tokenizer({**TINY, "quantizer": quantizer, **({"n_embed": 16} if quantizer == "ibq" else {})})


@pytest.mark.parametrize("quantizer", ["none", "ibq"])
def test_functions_are_the_tokenizers_own_whatever_the_batch(quantizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny(quantizer)
    codec = codec_of(tokenizer)
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = tokenizer.encode(images)
        decoded = tokenizer.decode(latents)
    monkeypatch.setattr("latentlab.codec.default_batch_size", lambda side, device: 2)
    torch.testing.assert_close(codec.encode(images), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(codec.decode(latents), decoded, atol=1e-5, rtol=1e-4)
    assert not codec.decode(latents).is_inference()  # callers may use it in a graph


def test_codebook_is_there_for_discrete_tokenizers_only() -> None:
    assert codec_of(tiny("ibq")).codebook.shape == (16, 4)
    assert codec_of(tiny("none")).codebook is None


def test_fingerprint_follows_the_weights() -> None:
    first, again, other = (codec_of(tiny("none", seed)).fingerprint for seed in (0, 0, 1))
    assert first == again != other


def test_functions_keep_float32_on_a_gpu() -> None:
    """As far as a CPU can tell: what a GPU is told while a network runs, and not after."""
    tokenizer, told = tiny("none"), []
    for half in (tokenizer.encoder, tokenizer.decoder):
        half.register_forward_pre_hook(lambda *_: told.append(torch.backends.cudnn.allow_tf32))
    before, codec = torch.backends.cudnn.allow_tf32, codec_of(tokenizer)
    codec.decode(codec.encode(torch.zeros(1, 3, 32, 32)))
    assert told == [False, False] and torch.backends.cudnn.allow_tf32 == before


def test_batches_are_cut_as_asked() -> None:
    tokenizer, sizes = tiny("none"), []
    tokenizer.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    codec_of(tokenizer, batch_size=2).encode(torch.zeros(5, 3, 32, 32))
    assert sizes == [2, 2, 1]
