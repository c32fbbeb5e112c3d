"""Containers as DeepSpeed and torch write them, around random weights with the released names."""

import argparse
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mind
from latentlab import UserError
from latentlab.weights import read_state_dict
from mind.config import MindConfig
from mind.network import Mind
from mind.published_keys import own_names
from mind.released import export_released, load_released

TINY = MindConfig(vocab_size=50, hidden_size=32, num_heads=4, num_blocks=3, cond_dim=24, num_classes=7)


def container(state: dict[str, Tensor], **others: Any) -> dict[str, Any]:
    """What DeepSpeed writes beside the weights."""
    return {
        "module": state,
        "buffer_names": ["rotary_emb.inv_freq"],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in state.items())],
        "frozen_param_shapes": None,
        "shared_params": {},
        "lr_scheduler": {"last_batch_iteration": 1_400_000, "base_lrs": [4e-4]},
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 1_400_000,
        "dp_world_size": 8,
        "ds_config": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}, "gradient_clipping": 1.0},
        "ds_version": "0.15.4",
        **others,
    }


def write(folder: Path, content: Any) -> Path:
    path = folder / "mp_rank_00_model_states.pt"
    torch.save(content, path)
    return path


def assert_same_function(model: Mind, state: dict[str, Tensor], released: Any, **options: Any) -> None:
    inputs = released.inputs(**{"d": model.config.embed_dim, **options.pop("inputs", {})})
    expected = released.logits(state, *inputs, heads=model.config.num_heads, **options)
    torch.testing.assert_close(model.logits(*inputs).double(), expected, rtol=2e-5, atol=2e-5)


# --- containers -------------------------------------------------------------------------------------------------------


def test_a_float32_container(tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny)
    model = mind.load_released(write(tmp_path, container(state)))
    assert_same_function(model, state, released)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.config == TINY


def test_a_bfloat16_container(tmp_path: Path, released: Any) -> None:
    """Computed in float32 from the rounded weights, with rotary tables as bfloat16 makes them."""
    state = released.state(dtype=torch.bfloat16, **released.tiny)
    model = mind.load_released(write(tmp_path, container(state)))
    assert model.config.rope_dtype == "bfloat16" and model.precision == "float32"
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert_same_function(model, state, released, inputs={"tokens": 200}, rope_dtype=torch.bfloat16)
    other = mind.load_released(tmp_path / "mp_rank_00_model_states.pt", rope_dtype="float32")
    assert_same_function(other, state, released, inputs={"tokens": 200}, rope_dtype=torch.float32)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("place", ["front", "inside", "both"])
def test_names_of_compiled_modules(place: str, wrapped: bool, tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny)

    def compiled(name: str) -> str:
        if place != "front":
            name = name.replace("blocks.1.", "blocks.1._orig_mod.").replace("output_layer.", "output_layer._orig_mod.")
        return name if place == "inside" else f"_orig_mod.{name}"

    renamed = {compiled(name): tensor for name, tensor in state.items()}
    model = mind.load_released(write(tmp_path, container(renamed) if wrapped else renamed))
    assert_same_function(model, state, released)


def test_a_name_with_and_without_the_mark_is_refused(tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny)
    path = write(tmp_path, {**state, "_orig_mod.scalar": torch.zeros(1, 1)})
    with pytest.raises(UserError, match=r"model_states\.pt holds the same weight with and without '_orig_mod\.'"):
        mind.load_released(path)


def test_safetensors_with_released_names(tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny)
    save_file(state, tmp_path / "mind.safetensors")
    assert_same_function(mind.load_released(tmp_path / "mind.safetensors"), state, released)


@pytest.mark.parametrize("absent", [("scalar",), ("rotary_emb.inv_freq",), ("scalar", "rotary_emb.inv_freq")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_follows_from_the_configuration_may_be_missing(
    absent: tuple[str, ...], dtype: torch.dtype, tmp_path: Path, released: Any
) -> None:
    state = released.state(dtype=dtype, **released.tiny)
    kept = {name: tensor for name, tensor in state.items() if name not in absent}
    model = mind.load_released(write(tmp_path, container(kept)), num_heads=4)
    whole = mind.load_released(write(tmp_path, container(state)))
    assert model.config == whole.config and model.config.rope_dtype == str(dtype).removeprefix("torch.")
    inputs = released.inputs()
    assert torch.equal(model.logits(*inputs), whole.logits(*inputs))


def test_every_weight_arrives(tmp_path: Path, released: Any) -> None:
    """Bit for bit, each under its own name."""
    state = released.state(**released.tiny)
    model = mind.load_released(write(tmp_path, container(state)))
    names, own = own_names(model.state_dict()), model.state_dict()
    assert len(names) == len(state) == len(own)
    assert all(torch.equal(own[names[name]], tensor) for name, tensor in state.items())


def test_precision_is_chosen_while_loading(tmp_path: Path, released: Any) -> None:
    path = write(tmp_path, container(released.state(dtype=torch.bfloat16, **released.tiny)))
    model = mind.load_released(path, precision="released_bf16")
    assert model.precision == "released_bf16" and model.table.embedding.dtype == torch.bfloat16
    with pytest.raises(UserError, match="unknown precision"):
        mind.load_released(path, precision="half")  # type: ignore[arg-type]


# --- averaged weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", ["ema", "model_ema", "ema_state_dict", "ema_state"])
def test_averaged_weights_only_when_asked_for(entry: str, tmp_path: Path, released: Any) -> None:
    raw, averaged = released.state(0, **released.tiny), released.state(1, **released.tiny)
    path = write(tmp_path, container(raw, **{entry: averaged}))
    assert_same_function(mind.load_released(path), raw, released)
    assert_same_function(mind.load_released(path, ema=True), averaged, released)


def test_absent_averaged_weights_are_said(tmp_path: Path, released: Any) -> None:
    path = write(tmp_path, container(released.state(**released.tiny)))
    with pytest.raises(
        UserError, match=r"no averaged weights \(ema, .*model_states\.pt has no entry.*use ema=False"
    ) as e:
        mind.load_released(path, ema=True)
    assert "\n" not in str(e.value)


# --- the configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "fields"),
    [
        ({"d": 8, "v": 70}, {"embed_dim": 8, "vocab_size": 70}),
        ({"h": 48, "heads": 2}, {"hidden_size": 48, "num_heads": 2}),
        ({"blocks": 1, "c": 16, "classes": 3}, {"num_blocks": 1, "cond_dim": 16, "num_classes": 3}),
    ],
)
def test_shapes_tell_the_configuration(
    sizes: dict[str, int], fields: dict[str, Any], tmp_path: Path, released: Any
) -> None:
    state = released.state(**released.tiny | sizes)
    model = mind.load_released(write(tmp_path, container(state)))
    assert model.config == TINY.model_copy(update=fields)
    assert_same_function(model, state, released, inputs={"classes": model.config.num_classes})


def test_everything_may_also_be_said(tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny | {"d": 8})
    model = mind.load_released(
        write(tmp_path, container(state)), hidden_size=32, num_heads=4, num_blocks=3, cond_dim=24, vocab_size=50, embed_dim=8,
        subvector_size=2, num_classes=7, tokens=12, grid=(3, 4), noise_factor=0.8, rope_dtype="bfloat16",
    )  # fmt: skip
    assert (model.config.subvector_size, model.config.noise_factor, model.process.noise_factor) == (2, 0.8, 0.8)
    assert model.config.rope_dtype == "bfloat16" and model.config.grid == (3, 4)
    norms = model.embed(torch.arange(50)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full((50,), 2.0), rtol=0, atol=1e-4)


def test_positions_over_rows_and_columns(tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny)
    model = mind.load_released(write(tmp_path, container(state)), rope="2d", grid=(3, 4), tokens=12)
    assert_same_function(model, state, released, grid=(3, 4))


def test_a_model_without_the_residual_branch(tmp_path: Path, released: Any) -> None:
    state = {k: v for k, v in released.state(**released.tiny).items() if not k.startswith("embed_proj")}
    model = mind.load_released(write(tmp_path, container(state)))
    assert not model.config.use_residual
    assert_same_function(model, state, released)


def test_heads_without_frequencies(tmp_path: Path, released: Any) -> None:
    def load(**sizes: int) -> MindConfig:
        state = released.state(**{**released.tiny, "blocks": 1, **sizes})
        del state["rotary_emb.inv_freq"]
        return mind.load_released(write(tmp_path, container(state))).config

    assert load(h=128).num_heads == 2
    with pytest.raises(UserError, match=r"does not tell its number of heads \(hidden_size 32\): give num_heads"):
        load(h=32)


@pytest.mark.parametrize(("name", "heads"), [("mind-b", 12), ("mind-s", 6), ("mind-xl", 16)])
def test_a_published_size_is_recognised_by_its_shapes(name: str, heads: int) -> None:
    """What shapes do not tell (sub-vectors, noise, and heads where the frequencies are absent) comes from that size."""
    from mind.released import _config_of

    with torch.device("meta"):
        model = Mind(mind.sized(name))
    names = own_names(model.state_dict())
    state = {
        published: model.state_dict()[own] for published, own in names.items() if published != "rotary_emb.inv_freq"
    }
    assert _config_of(Path("x.pt"), state, {}) == mind.sized(name)
    assert _config_of(Path("x.pt"), state, {"noise_factor": 0.5}).noise_factor == 0.5
    assert mind.sized(name).num_heads == heads


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, r"hidden_size=64 contradicts .*model_states\.pt, whose weights have hidden_size=32"),
        ({"num_heads": 2}, r"num_heads=2 contradicts .* num_heads=4"),
        ({"num_blocks": 4}, r"num_blocks=4 contradicts .* num_blocks=3"),
        ({"vocab_size": 51}, r"vocab_size=51 contradicts .* vocab_size=50"),
        ({"embed_dim": 8}, r"embed_dim=8 contradicts .* embed_dim=16"),
        ({"cond_dim": 8}, r"cond_dim=8 contradicts .* cond_dim=24"),
        ({"num_classes": 8}, r"num_classes=8 contradicts .* num_classes=7"),
        ({"use_residual": False}, r"use_residual=False contradicts .* use_residual=True"),
        ({"subvector_size": 5}, r"subvector_size \(5\) must divide embed_dim \(16\)"),
        ({"subvector": 4}, r"unknown field of a MIND model 'subvector'\. Did you mean subvector_size"),
        ({"grid": (8, 8)}, r"grid 8x8 does not hold 256 tokens"),
    ],
)
def test_contradictions_are_one_clear_line(fields: dict[str, Any], message: str, tmp_path: Path, released: Any) -> None:
    path = write(tmp_path, container(released.state(**released.tiny)))
    with pytest.raises(UserError, match=message) as caught:
        mind.load_released(path, **fields)
    assert "\n" not in str(caught.value)


# --- wrong files ------------------------------------------------------------------------------------------------------


def every_name(released: Any) -> list[str]:
    return [name for name in released.shapes(**released.tiny) if name not in ("scalar", "rotary_emb.inv_freq")]


WIDTHS = ("output_layer.norm_final.weight", "y_embedder.embedding_table.weight", "Embedding_map.feature_mlp.3.weight")


def test_any_missing_weight_is_named(tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny)
    for name in {*every_name(released)[::7], "vocab_embed.embedding", *WIDTHS}:
        path = write(tmp_path, container({key: tensor for key, tensor in state.items() if key != name}))
        with pytest.raises(UserError, match=rf"1 missing \({name}\)") as caught:
            mind.load_released(path)
        assert "unexpected" not in str(caught.value) and "shape" not in str(caught.value)


def test_missing_unexpected_and_reshaped_weights_in_one_line(tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny)
    del state["blocks.1.mlp.0.bias"], state["sigma_map.mlp.0.weight"]
    state["blocks.0.attn_qkv.bias"] = torch.zeros(96)
    state["blocks.2.norm1.weight"] = torch.zeros(31)
    with pytest.raises(UserError) as caught:
        mind.load_released(write(tmp_path, container(state)))
    said = str(caught.value)
    assert "2 missing (sigma_map.mlp.0.weight, blocks.1.mlp.0.bias)" in said
    assert "1 unexpected (blocks.0.attn_qkv.bias)" in said
    assert "1 of another shape (blocks.2.norm1.weight is [31] instead of [32])" in said
    assert "\n" not in said and "model_states.pt" in said


def test_another_models_file(tmp_path: Path) -> None:
    path = write(tmp_path, {"encoder.weight": torch.zeros(3), "decoder.weight": torch.zeros(3)})
    with pytest.raises(
        UserError, match=r"missing \(scalar|missing \(.* more\).*2 unexpected \(encoder\.weight, decoder"
    ):
        mind.load_released(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"module": {"a": 1}}, r"entry 'module' is not a state dict: not tensors: a"),
        ({"step": 3, "a": torch.zeros(1)}, r"not a state dict: not tensors: step"),
        ([1, 2], r"holds a list, not a state dict"),
        ({}, r"missing"),
    ],
)
def test_what_is_not_a_state_dict(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        mind.load_released(write(tmp_path, content))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.pt does not exist"):
        mind.load_released(tmp_path / "absent.pt")
    path = write(tmp_path, container({"a": torch.zeros(1000)}))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="damaged"):
        mind.load_released(path)
    with pytest.raises(UserError, match=r"no averaged weights.*damaged"):
        mind.load_released(path, ema=True)


def test_a_container_that_runs_code_is_refused(tmp_path: Path, released: Any) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (Path.touch, (tmp_path / "was-run",))

    path = write(tmp_path, container(released.state(**released.tiny), client_state=Attack()))
    with pytest.raises(UserError, match=r"model_states\.pt is refused"):
        mind.load_released(path)
    assert not (tmp_path / "was-run").exists()


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_is_the_container_again(tmp_path: Path, released: Any) -> None:
    state = released.state(**released.tiny)
    model = mind.load_released(write(tmp_path, container(state)))
    mind.export_released(model, tmp_path / "out" / "model.pt")
    written = read_state_dict(tmp_path / "out" / "model.pt", "module")
    assert written.keys() == state.keys() == released.shapes(**released.tiny).keys()
    assert all(torch.equal(written[name], state[name]) for name in state)


def test_export_keeps_bfloat16_as_bfloat16(tmp_path: Path, released: Any) -> None:
    state = released.state(dtype=torch.bfloat16, **released.tiny)
    model = mind.load_released(write(tmp_path, container(state)), precision="released_bf16")
    mind.export_released(model, tmp_path / "model.pt")
    written = read_state_dict(tmp_path / "model.pt", "module")
    assert all(written[name].dtype == torch.bfloat16 and torch.equal(written[name], state[name]) for name in state)
    assert mind.load_released(tmp_path / "model.pt").config == model.config


@pytest.mark.parametrize("rope_dtype", ["float32", "bfloat16"])
def test_reading_an_export_gives_the_model_back(rope_dtype: str, tmp_path: Path, released: Any) -> None:
    torch.manual_seed(0)
    model = Mind(TINY.model_copy(update={"rope_dtype": rope_dtype})).eval()
    mind.export_released(model, tmp_path / "model.pt")
    again = mind.load_released(tmp_path / "model.pt")
    assert again.config == model.config
    inputs = released.inputs()
    assert torch.equal(again.logits(*inputs), model.logits(*inputs))


def test_a_released_container_is_sent_to_the_right_function(tmp_path: Path, released: Any) -> None:
    path = write(tmp_path, container(released.state(**released.tiny)))
    with pytest.raises(UserError, match=r"read the authors' with mind\.load_released"):
        mind.load_mind(path)


def test_bookkeeping_of_training_code_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = type("LossScaler", (), {"__module__": "deepspeed.runtime.fp16.loss_scaler"})
    module = types.ModuleType("deepspeed.runtime.fp16.loss_scaler")
    module.LossScaler = scaler  # type: ignore[attr-defined]
    for name in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.fp16"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    one = scaler()
    one.cur_scale = 4.0
    model = tiny_mind()
    export_released(model, tmp_path / "plain.pt")
    weights = torch.load(tmp_path / "plain.pt", weights_only=True)["module"]
    extras = {"args": argparse.Namespace(lr=1e-4), "loss": np.float64(0.5), "step": np.int64(3), "loss_scaler": one}
    torch.save({"module": weights, **extras}, tmp_path / "full.pt")
    loaded = load_released(tmp_path / "full.pt", num_heads=2)
    assert torch.equal(loaded.table.embedding, model.table.embedding)


def test_safetensors_export_is_read_back(tmp_path: Path) -> None:
    model = tiny_mind()
    export_released(model, tmp_path / "a.safetensors")
    loaded = load_released(tmp_path / "a.safetensors", num_heads=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny_mind()
    model.blocks[0].mlp[0].bias.data[0] = torch.nan
    export_released(model, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"NaN or infinite weights \(blocks\.0\.mlp\.0\.bias\)"):
        load_released(tmp_path / "a.pt", num_heads=2)


def tiny_mind() -> Mind:
    torch.manual_seed(0)
    config = MindConfig(
        vocab_size=32,
        embed_dim=8,
        subvector_size=2,
        hidden_size=32,
        num_heads=2,
        num_blocks=2,
        cond_dim=16,
        num_classes=3,
    )
    return Mind(config).requires_grad_(False)
