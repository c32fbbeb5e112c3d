"""Truths: the plain second implementation in conftest.py, published parameter counts, and what must hold at the start."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from latentlab import UserError
from mind.config import MindConfig, sized
from mind.geometry import soft_topk
from mind.network import Mind
from mind.published_keys import own_names, published_name

TINY: dict[str, Any] = {
    "vocab_size": 50, "embed_dim": 16, "hidden_size": 32, "num_heads": 4, "num_blocks": 3, "cond_dim": 24, "num_classes": 7,
    "tokens": 12,
}  # fmt: skip


def model_of(state: dict[str, Tensor], **fields: Any) -> Mind:
    model = Mind(MindConfig(**{**TINY, **fields}))
    names = own_names(model.state_dict())
    model.load_state_dict({names[name]: tensor for name, tensor in state.items()})
    return model.eval()


def hollow(name: str) -> Mind:
    with torch.device("meta"):
        return Mind(sized(name))


def fresh(seed: int = 0, **fields: Any) -> Mind:
    torch.manual_seed(seed)
    return Mind(MindConfig(**{**TINY, **fields}))


# --- size and names ---------------------------------------------------------------------------------------------------

PARTS = {
    "scalar": (1, 1),
    "vocab_embed": (262_144, 65_536),
    "Embedding_map": (4_339_456, 1_284_992),
    "embed_proj": (5_415_168, 1_454_208),
    "sigma_map": (49_408, 49_408),
    "y_embedder": (128_128, 128_128),
    "blocks": (107_487_744, 28_971_264),
    "output_layer": (12_798_208, 3_253_376),
}


@pytest.mark.parametrize(("column", "name", "total"), [(0, "mind-b", 130_480_257), (1, "mind-s", 35_206_913)])
def test_published_parameter_counts(column: int, name: str, total: int) -> None:
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    for own, parameter in hollow(name).named_parameters():
        counts[published_name(own).partition(".")[0]] += parameter.numel()
    assert counts == {part: both[column] for part, both in PARTS.items()}
    assert sum(counts.values()) == total


def test_parameter_count_of_mind_xl() -> None:
    assert sum(p.numel() for p in hollow("mind-xl").parameters()) == 714_912_001


def test_state_dict_of_mind_b(released: Any) -> None:
    expected = released.shapes()
    state = {published_name(own): tuple(tensor.shape) for own, tensor in hollow("mind-b").state_dict().items()}
    assert len(expected) == 177 and state == expected
    assert {name for name, _ in hollow("mind-b").named_buffers()} == {"rotary.inv_freq"}


def test_names_convert_both_ways() -> None:
    names = list(hollow("mind-b").state_dict())
    back = own_names(names)
    assert [back[published_name(name)] for name in names] == names


# --- the same function ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_logits_against_the_plain_implementation(seed: int, released: Any) -> None:
    state, inputs = released.state(seed, **released.tiny), released.inputs()
    found = model_of(state).logits(*inputs)
    assert found.std() > 0.5
    torch.testing.assert_close(found.double(), released.logits(state, *inputs, heads=4), rtol=1e-5, atol=1e-5)


def test_another_latent_width(released: Any) -> None:
    state = released.state(**released.tiny | {"d": 8})
    inputs = released.inputs(d=8)
    model = model_of(state, embed_dim=8, subvector_size=2)
    torch.testing.assert_close(
        model.logits(*inputs).double(), released.logits(state, *inputs, heads=4), rtol=1e-5, atol=1e-5
    )


def test_without_the_residual_branch(released: Any) -> None:
    state = {k: v for k, v in released.state(**released.tiny).items() if not k.startswith("embed_proj")}
    inputs = released.inputs()
    model = model_of(state, use_residual=False)
    torch.testing.assert_close(
        model.logits(*inputs).double(), released.logits(state, *inputs, heads=4), rtol=1e-5, atol=1e-5
    )


def test_positions_over_rows_and_columns(released: Any) -> None:
    state, inputs = released.state(**released.tiny), released.inputs()
    model = model_of(state, rope="2d", grid=(3, 4))
    expected = released.logits(state, *inputs, heads=4, grid=(3, 4))
    torch.testing.assert_close(model.logits(*inputs).double(), expected, rtol=1e-5, atol=1e-5)
    assert (expected - released.logits(state, *inputs, heads=4, grid=(4, 3))).abs().max() > 0.01


def test_rotary_tables_in_bfloat16(released: Any) -> None:
    state, inputs = released.state(**released.tiny), released.inputs(tokens=200)
    expected = {
        dtype: released.logits(state, *inputs, heads=4, rope_dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    }
    assert (expected[torch.float32] - expected[torch.bfloat16]).abs().max() > 0.01
    for dtype, logits in expected.items():
        model = model_of(state, rope_dtype=str(dtype).removeprefix("torch."), tokens=200)
        torch.testing.assert_close(model.logits(*inputs).double(), logits, rtol=2e-5, atol=2e-5)


def test_how_far_off_bfloat16_tables_are() -> None:
    """Head width 64, 256 positions: up to 0.54 rad and 0.53 in a cosine, 0.038 rms, 2.9 % of all entries by more than 0.1."""
    fields = {"hidden_size": 64, "num_heads": 1, "tokens": 256}
    exact, rounded = (fresh(**fields, rope_dtype=dtype).rotary for dtype in ("float32", "bfloat16"))
    angles = exact._angles(256) - rounded._angles(256).float()
    errors = torch.cat([a - b.float() for a, b in zip(exact(256), rounded(256), strict=True)])
    assert float(angles.abs().max()) == pytest.approx(0.54, abs=0.005)
    assert float((exact(256)[0] - rounded(256)[0].float()).abs().max()) == pytest.approx(0.53, abs=0.005)
    assert float(errors.square().mean().sqrt()) == pytest.approx(0.038, abs=0.0005)
    assert float((errors.abs() > 0.1).float().mean()) == pytest.approx(0.029, abs=0.001)


def test_frequencies_in_the_state_dict_decide(released: Any) -> None:
    state, inputs = released.state(**released.tiny), released.inputs()
    state["rotary_emb.inv_freq"] = state["rotary_emb.inv_freq"] * 0.7
    torch.testing.assert_close(
        model_of(state).logits(*inputs).double(), released.logits(state, *inputs, heads=4), rtol=1e-5, atol=1e-5
    )


def test_frequencies_that_are_loaded_later_count(released: Any) -> None:
    model, inputs = fresh(), released.inputs()
    model.logits(*inputs)
    other = model_of(released.state(**released.tiny) | {"rotary_emb.inv_freq": torch.ones(4) * 0.3})
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.logits(*inputs), other.logits(*inputs))


# --- interface --------------------------------------------------------------------------------------------------------


def test_trunk_and_head_apart(released: Any) -> None:
    model, (x, t, y) = model_of(released.state(**released.tiny)), released.inputs()
    hidden, cond = model(x, t, y)
    assert hidden.shape == (3, 12, 32) and cond.shape == (3, 24)
    assert torch.equal(model.output(hidden, cond), model.logits(x, t, y))


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_blocks_in_two_parts(cut: int, released: Any) -> None:
    model, (x, t, y) = model_of(released.state(**released.tiny)), released.inputs()
    hidden, cond = model(x, t, y)
    first = model.run_blocks(model.read(x), cond, 0, cut)
    assert torch.equal(model.run_blocks(first, cond, cut), hidden)
    assert torch.equal(first, model.read(x)) == (cut == 0)


def test_images_do_not_see_each_other(released: Any) -> None:
    model, (x, t, y) = model_of(released.state(**released.tiny)), released.inputs()
    together = model.logits(x, t, y)
    for i in range(3):
        alone = model.logits(x[i : i + 1], t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=1e-5, atol=1e-5)


def test_embeddings_and_soft_topk_are_those_of_the_table(released: Any) -> None:
    model = model_of(released.state(**released.tiny))
    z = model.embed(torch.arange(50)[None])
    torch.testing.assert_close(z[0].unflatten(-1, (4, 4)).norm(dim=-1), torch.ones(50, 4), rtol=0, atol=1e-4)
    logits = torch.randn(2, 5, 50)
    assert torch.equal(model.soft_topk(logits, 7), soft_topk(logits, z[0], 7, "full_unit", 4))
    assert torch.equal(model.soft_topk(logits, 7, norm="subvector"), soft_topk(logits, z[0], 7, "subvector", 4))


@pytest.mark.parametrize("recompute", ["cheap", "blocks"])
def test_recomputed_blocks_give_the_same_gradients(released: Any, recompute: Any) -> None:
    gradients = []
    for chosen in ("nothing", recompute):
        model = model_of(released.state(**released.tiny)).train()
        model.recompute = chosen
        model.logits(*released.inputs()).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 60
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_training_after_sampling(released: Any) -> None:
    """What inference mode leaves behind must not stop the next backward pass."""
    model, inputs = model_of(released.state(**released.tiny)), released.inputs()
    with torch.inference_mode():
        model.logits(*inputs)
    model.logits(*inputs).sum().backward()
    assert model.blocks[0].qkv.weight.grad is not None


# --- precision --------------------------------------------------------------------------------------------------------


def test_autocast_keeps_weights_and_is_close(released: Any) -> None:
    model, inputs = model_of(released.state(**released.tiny)), released.inputs()
    exact = model.logits(*inputs)
    rounded = model.set_precision("autocast").logits(*inputs)
    assert rounded.dtype == torch.bfloat16 and all(p.dtype == torch.float32 for p in model.parameters())
    assert 1e-4 < float((rounded - exact).detach().abs().mean()) < 0.03
    assert torch.equal(model.set_precision("float32").logits(*inputs), exact)


def test_released_bf16_rounds_weights_but_not_the_rotary_tables(released: Any) -> None:
    model, inputs = model_of(released.state(**released.tiny)), released.inputs(tokens=200)
    exact, tables = model.logits(*inputs), model.rotary(200)
    rounded = model.set_precision("released_bf16").logits(*inputs)
    assert rounded.dtype == torch.bfloat16 and all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert float((rounded - exact).detach().abs().mean()) < 0.1
    assert all(torch.equal(a, b) for a, b in zip(tables, model.rotary(200), strict=True))
    back = model.set_precision("float32")
    assert all(torch.equal(p, p.bfloat16().float()) for p in back.parameters())  # rounded for good
    torch.testing.assert_close(back.rotary.inv_freq, 10000.0 ** (-torch.arange(4) / 4))


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown precision 'bf16'.*float32, autocast, released_bf16"):
        fresh().set_precision("bf16")  # type: ignore[arg-type]


# --- the start --------------------------------------------------------------------------------------------------------


def start_logits(model: Mind) -> tuple[Tensor, Tensor]:
    """Logits of a fresh model on diffused tokens, and the tokens."""
    config = model.config
    ids = torch.randint(config.vocab_size, (8, config.tokens), generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.05, 0.95, 8)
    with torch.no_grad():
        z = model.embed(ids)
        x = model.process.diffuse(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(1)), t)
        return model.logits(x, t, torch.zeros(8, dtype=torch.int64)), ids


def test_first_loss_is_a_little_above_chance() -> None:
    """The head starts as torch's default, uniform within 1/sqrt(h), on rows of norm sqrt(h): variance 1/3, loss ln V + 1/6."""
    model = fresh(vocab_size=512, hidden_size=256, num_heads=4, cond_dim=64, tokens=64)
    logits, ids = start_logits(model)
    assert float(logits.var()) == pytest.approx(1 / 3, rel=0.1)
    loss = float(functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))
    assert loss == pytest.approx(math.log(512) + 1 / 6, abs=0.04)


def test_first_logits_are_the_head_on_normalised_inputs() -> None:
    model, x = fresh(), torch.randn(2, 12, 16)
    h0 = functional.layer_norm(model.fourier(x), (32,))
    found = model.logits(x, torch.tensor([0.2, 0.8]), torch.tensor([0, 7]))
    torch.testing.assert_close(found, functional.linear(h0, model.head.linear.weight, model.head.linear.bias))


def test_blocks_start_as_the_identity_and_the_residual_branch_at_zero() -> None:
    model, x = fresh(), torch.randn(2, 12, 16)
    assert model.residual is not None
    assert torch.equal(model.residual(x), torch.zeros(2, 12, 32))
    hidden, cond = torch.randn(2, 12, 32), torch.randn(2, 24)
    assert torch.equal(model.run_blocks(hidden, cond), hidden)


def test_the_residual_branch_changes_the_start_of_nothing_else() -> None:
    """Pairs with and without it are compared: they must differ in the branch alone. Its names stay where they were."""
    with_it, without = fresh().state_dict(), fresh(use_residual=False).state_dict()
    assert [name for name in with_it if not name.startswith("residual.")] == list(without)
    assert all(torch.equal(with_it[name], tensor) for name, tensor in without.items())
    parts = list(dict.fromkeys(name.partition(".")[0] for name in with_it))
    assert parts == ["scalar", "table", "fourier", "residual", "time", "classes", "rotary", "blocks", "head"]


def test_first_gradients_of_the_residual_branch() -> None:
    """Its last layer is zero: it learns at once, and nothing gets through to the layers before."""
    model = fresh()
    logits = model.logits(torch.randn(2, 12, 16), torch.rand(2), torch.tensor([0, 1]))
    functional.cross_entropy(logits.flatten(0, 1), torch.randint(50, (24,))).backward()
    assert model.residual is not None
    last, *earlier = [p.grad for p in reversed(list(model.residual.parameters()))]
    assert last is not None and float(last.abs().max()) > 0
    assert all(gradient is not None and not gradient.any() for gradient in earlier)


def test_frequencies_of_the_fourier_mapping() -> None:
    """Xavier uniform of a 16 -> 256 layer: bound sqrt(6/272) = 0.1485, deviation 0.0857; or N(0, freq_std^2) as in the paper."""
    weight = fresh().fourier.frequencies.weight.detach()
    assert float(weight.std()) == pytest.approx(0.0857, rel=0.03)
    assert 0.14 < float(weight.abs().max()) <= math.sqrt(6 / 272)
    for std in (10.0, 0.25):
        drawn = fresh(freq_init="normal", freq_std=std).fourier.frequencies.weight.detach()
        assert float(drawn.std()) == pytest.approx(std, rel=0.03)


def test_biases_norms_and_classes_start_as_published() -> None:
    model = fresh(num_classes=500)
    assert float(model.classes.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not any(layer.bias.any() for layer in model.fourier.mlp if isinstance(layer, torch.nn.Linear))
    assert all(torch.equal(b.norm1.weight, torch.ones(32)) for b in model.blocks)
    assert model.scalar.tolist() == [[1.0]]


@pytest.mark.parametrize("precision", ["float32", "autocast", "released_bf16"])
def test_soft_topk_in_every_precision(released: Any, precision: Any) -> None:
    model = model_of(released.state(**released.tiny)).set_precision(precision)
    x, t, labels = released.inputs()
    estimate = model.soft_topk(model.logits(x, t, labels), 5)
    assert estimate.isfinite().all() and estimate.shape == x.shape
    with pytest.raises(UserError, match="k of at least 1"):
        model.soft_topk(model.logits(x, t, labels), 0)


def test_ids_outside_are_refused(released: Any) -> None:
    model = model_of(released.state(**released.tiny))
    x, t, labels = released.inputs()
    with pytest.raises(UserError, match=f"token ids must lie in 0 .. {model.config.vocab_size - 1}"):
        model.embed(torch.tensor([model.config.vocab_size]))
    with pytest.raises(UserError, match="class ids must lie in"):
        model.logits(x, t, labels + 1000)
