import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentlab import UserError
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.architecture import Architecture, read_architecture
from latentlab.tokenizers.autoencoder import Autoencoder, build_tokenizer
from latentlab.tokenizers.ldm import AttnBlock, Decoder, Downsample, Encoder, LDMConfig
from latentlab.tokenizers.zoo import find_release

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"


def published(name: str) -> Autoencoder:
    """The full-size network without memory for its weights."""
    with torch.device("meta"):
        return build_tokenizer(find_release(name, "imagenet256").architecture or {})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "folder"), [("ibq", "ibq"), ("va-vae", "vavae_f16d32")])
def test_full_size_keys_and_shapes_are_the_published_ones(name: str, folder: str) -> None:
    listing = GOLDEN / folder / "keys_full_size.json"
    if not listing.is_file():
        pytest.skip("the reference key lists are not here")
    keys = {
        key: shape for key, (shape, _) in json.loads(listing.read_text()).items() if not key.startswith("model_ema.")
    }
    assert {key: list(tensor.shape) for key, tensor in published(name).state_dict().items()} == keys


@pytest.mark.parametrize(
    ("name", "parameters"), [("ibq", 110_982_019), ("vqgan-f16", 76_073_859), ("va-vae", 69_836_067)]
)
def test_full_size_parameter_counts_are_the_published_ones(name: str, parameters: int) -> None:
    assert count(published(name)) == parameters


def test_sizes_of_the_ibq_files_are_the_published_ones() -> None:
    """888 and 857 MB: every parameter twice, raw and averaged, in four bytes."""
    for release, megabytes in (("imagenet256", 888), ("imagenet256-1024", 857), ("pretrain-16384", 888)):
        with torch.device("meta"):
            size = 8 * count(build_tokenizer(find_release("ibq", release).architecture or {}))
        assert abs(size / 1e6 - megabytes) < 1


def test_the_copy_of_vqgan_with_1024_codes_is_refused_by_name(tmp_path: Path) -> None:
    """Copies on the hub of 289 MB, named after 16384 codes, have 1024."""
    with torch.device("meta"):
        other = build_tokenizer({**(find_release("vqgan-f16", "imagenet256").architecture or {}), "n_embed": 1024})
    assert abs(4 * count(other) / 1e6 - 289) < 1 and abs(4 * count(published("vqgan-f16")) / 1e6 - 304) < 1
    narrow = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1}
    written = build_tokenizer(
        {**(find_release("vqgan-f16", "imagenet256").architecture or {}), **narrow, "n_embed": 1024}
    )
    torch.save({"state_dict": written.state_dict()}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"quantize\.embedding\.weight is \[1024, 256\] instead of \[16384, 256\]"):
        load_tokenizer("vqgan-f16", weights=tmp_path / "last.ckpt", architecture=narrow)


def test_mar_as_safetensors_has_the_published_number_of_bytes() -> None:
    """The size of the published file fixes names and shapes: its header lists every key, shape and offset."""
    state = published("mar-kl16").state_dict()
    assert len(state) == 312
    header: dict[str, Any] = {}
    end = 0
    for key in sorted(state):
        start, end = end, end + 4 * state[key].numel()
        header[key] = {"dtype": "F32", "shape": list(state[key].shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    assert 8 + -(-length // 8) * 8 + end == 265_856_244


def test_attention_sits_where_the_nominal_resolution_says() -> None:
    keys = published("mar-kl16").state_dict()
    encoder = {key.split(".attn")[0] for key in keys if key.startswith("encoder.down") and ".attn." in key}
    assert encoder == {"encoder.down.4"}  # 256 / 2^4 = 16
    assert not [key for key in keys if key.startswith("decoder.up") and ".attn." in key]
    assert "decoder.mid.attn_1.q.weight" in keys
    assert "decoder.up.4.attn.2.q.weight" in published("va-vae").state_dict()
    coarsest = LDMConfig(ch=32, ch_mult=(1, 1, 2), z_channels=4, resolution=64, attn_resolutions="coarsest")
    assert [coarsest.encoder_attention(i) for i in range(3)] == [False, False, True]
    assert [coarsest.decoder_attention(i) for i in range(3)] == [False, False, True]
    small = Encoder(
        LDMConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, resolution=32, attn_resolutions=(32,))
    )
    assert [len(level.attn) for level in small.down] == [1, 0]


def test_downsampling_pads_right_and_bottom_only() -> None:
    """The window of output (i,j) starts at input (2i,2j): with weights of one it is a sum over that window."""
    layer = Downsample(1)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)
    x = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([[x[0, 0, i : i + 3, j : j + 3].sum() for j in (0, 2, 4)] for i in (0, 2, 4)])
    torch.testing.assert_close(layer(x)[0, 0], expected)


def test_attention_equals_the_formula() -> None:
    """x + W softmax(q k^T / sqrt(c)) v over all cells, written out in float64."""
    torch.manual_seed(0)
    block, x = AttnBlock(64, groups=8).double(), torch.randn(2, 64, 3, 5, dtype=torch.float64)
    cells = F.group_norm(x, 8, block.norm.weight, block.norm.bias, eps=1e-6).flatten(2).transpose(1, 2)
    q, k, v = (cells @ c.weight.flatten(1).T + c.bias for c in (block.q, block.k, block.v))
    mixed = torch.softmax(q @ k.transpose(1, 2) / 8, dim=2) @ v
    out = mixed @ block.proj_out.weight.flatten(1).T + block.proj_out.bias
    torch.testing.assert_close(block(x), x + out.transpose(1, 2).reshape(x.shape))


def test_shapes_with_and_without_double_z() -> None:
    for double_z, channels in ((False, 4), (True, 8)):
        config = LDMConfig(ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=4, double_z=double_z, resolution=32)
        assert Encoder(config)(torch.zeros(2, 3, 16, 24)).shape == (2, channels, 4, 6)
        assert Decoder(config)(torch.zeros(2, 4, 4, 6)).shape == (2, 3, 16, 24)
        assert config.downsampling == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ch": 48, "z_channels": 4}, r"tokenizer architecture: ch must be a multiple of norm_groups, got 48 and 32"),
        ({"z_channels": 4, "num_res_block": 2}, r"architecture field 'num_res_block'\. Did you mean num_res_blocks"),
        ({"ch": 32}, r"z_channels: .*greater than 0|z_channels: Field required"),
        ({"z_channels": 4, "quantizer": "ibq"}, r"quantizer 'ibq' needs n_embed"),
        ({"z_channels": 4, "quantizer": "kl", "n_embed": 8}, r"quantizer 'kl' has no codes"),
        (
            {"z_channels": 4, "quantizer": "vq", "n_embed": 8, "double_z": True},
            r"double_z=True does not go with .* 'vq'",
        ),
        (
            {"z_channels": 4, "quantizer": "lfqq"},
            r"quantizer: .*'none', 'kl', 'vq', 'vq-cosine', 'ibq', 'lfq' or 'fsq'",
        ),
        ({"z_channels": "many"}, r"z_channels: .*valid integer"),
        ({"z_channels": 4, "embed_dim": 8, "use_quant_conv": False}, "embed_dim must equal z_channels, got 8 and 4"),
        ({"z_channels": 4, "patch_size": 2}, "patch_size=2 needs quantizer 'kl', got 'none'"),
        ({"z_channels": 4, "decoder_ch": 48}, "decoder_ch must be a multiple of norm_groups, got 48 and 32"),
    ],
)
def test_impossible_architectures_are_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_architecture(fields, Architecture)
    assert "\n" not in str(caught.value)


def test_left_out_fields_follow_from_the_others() -> None:
    chosen = read_architecture({"z_channels": 4, "quantizer": "kl"}, Architecture)
    assert (chosen.embed_dim, chosen.double_z, chosen.latent_shape) == (4, True, (4, 16, 16))
    assert read_architecture({"z_channels": 4, "embed_dim": 8}, Architecture).latent_shape == (8, 16, 16)
