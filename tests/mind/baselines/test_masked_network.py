"""The masked transformer: published sizes, what it may see, and the packing of visible tokens against a loop over images."""

from typing import Any

import pytest
import torch
from torch import Tensor

from latentlab.errors import UserError
from mind.baselines.masked_config import MaskedConfig, sized
from mind.baselines.masked_layers import Packing
from mind.baselines.masked_network import MaskedTransformer

TINY = {"input": (2, 3), "vocab_size": 7, "num_classes": 3, "width": 16, "depth": 4, "heads": 2, "class_tokens": 2}
CONTINUOUS = {"vocab_size": None, "in_channels": 3, "head_depth": 1, "head_width": 8}
LABELS = torch.tensor([2, 0, 3])  # 3 is "no class"
MASKED = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
CODES = torch.tensor([[0, 1, 2, 3, 4, 5], [6, 5, 4, 3, 2, 1], [0, 0, 0, 0, 0, 0]])


def tiny(**fields: Any) -> MaskedTransformer:
    torch.manual_seed(0)
    model = MaskedTransformer(MaskedConfig(**{**TINY, **fields})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("emigm-xs", 69), ("emigm-s", 97), ("emigm-b", 208), ("emigm-l", 478), ("emigm-h", 942),
        ("emigm-xs-512", 104), ("emigm-s-512", 132), ("emigm-b-512", 244), ("emigm-l-512", 478),
    ],
)  # fmt: skip
def test_sizes_have_the_published_number_of_parameters(size: str, millions: int) -> None:
    with torch.device("meta"):
        model = MaskedTransformer(sized(size))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.51)  # 104.507 is printed as 104


@pytest.mark.parametrize("mae", [True, False])
def test_what_stands_at_masked_places_has_no_effect(mae: bool) -> None:
    model = tiny(mae=mae)
    others = torch.where(MASKED, (CODES + 3) % 7, CODES)
    assert torch.equal(model(CODES, MASKED, LABELS), model(others, MASKED, LABELS))
    seen = torch.where(MASKED, CODES, (CODES + 3) % 7)
    assert not torch.allclose(model(CODES, MASKED, LABELS)[:2], model(seen, MASKED, LABELS)[:2])


def image_by_image(model: MaskedTransformer, codes: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
    """Return what the masked autoencoder says, one image at a time, with the visible tokens picked from a list."""
    config, answers = model.config, []
    for code, mask, label in zip(codes, masked, labels.tolist(), strict=True):
        kind = model.mask_token if label == config.null_class else model.classes.weight[label]
        rows = [kind] * config.class_tokens + [model.input.weight[c] for c in code]
        places = [*range(config.class_tokens)] + [config.class_tokens + i for i in range(6) if not mask[i]]
        x = torch.stack([model.input_norm(rows[p] + model.positions[p]) for p in places])[None]
        for block in model.blocks[: config.encoder_depth]:
            x = block(x)
        encoded = model.bridge(model.encoder_norm(x))[0]
        whole = [model.mask_token] * (config.class_tokens + 6)
        for row, place in zip(encoded, places, strict=True):
            whole[place] = row
        x = (torch.stack(whole) + model.decoder_positions)[None]
        for block in model.blocks[config.encoder_depth :]:
            x = block(x)
        answers.append(model.output_norm(x[0, config.class_tokens :]) + model.output_positions)
    return torch.stack(answers)


def test_masked_autoencoder_equals_a_loop_over_images() -> None:
    model = tiny()
    expected = image_by_image(model, CODES, MASKED, LABELS)
    torch.testing.assert_close(model(CODES, MASKED, LABELS), expected, rtol=1e-5, atol=1e-5)


def test_single_encoder_sees_mask_tokens_from_the_beginning() -> None:
    model = tiny(mae=False)
    rows = torch.where(MASKED[..., None], model.mask_token, model.input.weight[CODES])
    kinds = torch.stack([model.classes.weight[2], model.classes.weight[0], model.mask_token])
    x = model.input_norm(torch.cat([kinds[:, None].expand(-1, 2, -1), rows], 1) + model.positions)
    for block in model.blocks:
        x = block(x)
    expected = model.output_norm(x[:, 2:]) + model.output_positions
    torch.testing.assert_close(model(CODES, MASKED, LABELS), expected)


def test_block_equals_attention_written_out() -> None:
    block = tiny().blocks[0]
    x, attended = torch.randn(1, 4, 16), torch.tensor([[True, True, False, True]])
    q, k, v = block.qkv(block.norm1(x))[0].split(16, dim=-1)
    mixed = torch.zeros(4, 16)
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        scores = q[:, part] @ k[:, part].T / 8**0.5
        scores[:, 2] = -torch.inf
        mixed[:, part] = scores.softmax(-1) @ v[:, part]
    y = x + block.out(mixed)
    expected = y + block.narrow(torch.nn.functional.gelu(block.wide(block.norm2(y))))
    torch.testing.assert_close(block(x, attended), expected, rtol=1e-5, atol=1e-5)


def test_packing_moves_visible_tokens_forward_and_back() -> None:
    packing = Packing.of(MASKED[:2])
    x = torch.arange(12.0).view(2, 6, 1)
    packed = packing.pack(x)
    assert packed[0, :2, 0].tolist() == [1, 4]
    assert packed[1, :, 0].tolist() == [6, 7, 8, 9, 11]
    assert packing.real.tolist() == [[True, True, False, False, False], [True] * 5]
    whole = packing.unpack(packed, torch.tensor([-1.0]), MASKED[:2])
    assert whole[..., 0].tolist() == [[-1, 1, -1, -1, 4, -1], [6, 7, 8, 9, -1, 11]]


def test_no_class_is_the_mask_token_or_an_embedding_of_its_own() -> None:
    shared, own = tiny(), tiny(null_token="own")
    assert shared.null_token is None
    with torch.no_grad():
        shared.classes.weight[1] = shared.mask_token
        own.classes.weight[1] = own.null_token
    for model in (shared, own):
        first = model(CODES[:1], MASKED[:1], torch.tensor([1]))
        assert torch.equal(first, model(CODES[:1], MASKED[:1], torch.tensor([3])))


@pytest.mark.parametrize("recompute", ["cheap", "blocks"])
def test_recomputed_blocks_give_the_same_gradients(recompute: Any) -> None:
    gradients = []
    for chosen in ("nothing", recompute):
        model = tiny()
        model.recompute = chosen
        model(CODES, MASKED, LABELS).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_autocast_is_close_to_float32() -> None:
    model = tiny()
    exact = model(CODES, MASKED, LABELS)
    rounded = model.set_precision("autocast")(CODES, MASKED, LABELS)
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    with pytest.raises(UserError, match="float32, autocast"):
        model.set_precision("float16")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ((3, 4, 6), {"input": (4, 6), "patch": 2}),
        ((3, 4, 6), {"input": (4, 6), "patch": 1}),
        ((8, 3), {"input": None, "tokens": 8, "patch": 2}),
    ],
)
def test_latents_become_tokens_and_back(shape: tuple[int, ...], fields: dict[str, Any]) -> None:
    model = tiny(**CONTINUOUS, **fields)
    latents = torch.randn(2, *shape)
    tokens = model.to_tokens(latents)
    assert tokens.shape == (2, model.config.length, model.config.token_width)
    assert torch.equal(model.to_latents(tokens), latents)


def test_a_patch_is_a_square_of_neighbours() -> None:
    model = tiny(**{**CONTINUOUS, "in_channels": 1}, input=(4, 4), patch=2)
    tokens = model.to_tokens(torch.arange(16.0).view(1, 1, 4, 4))
    assert tokens[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_codes_come_as_grids_or_sequences() -> None:
    model = tiny()
    assert torch.equal(model.to_tokens(CODES.view(3, 2, 3)), CODES)
    assert torch.equal(model.to_tokens(CODES), CODES)
    with pytest.raises(UserError, match=r"shape \[2, 3\], got \[3, 2\]"):
        model.to_tokens(CODES.view(3, 3, 2))
