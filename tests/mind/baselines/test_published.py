"""Published checkpoints: what is read from their shapes, what is refused, and the way out and back."""

import copy
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab.errors import UserError
from mind.baselines.published import export_published, load_published
from mind.baselines.published_keys import heads, published_name, told_by_shapes, unwrapped
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import TransformerConfig, sized

SMALL: dict[str, Any] = {
    "depth": 2,
    "width": 32,
    "heads": 2,
    "patch": 2,
    "num_classes": 5,
    "input": (8, 8),
    "in_channels": 3,
}


def model_of(kind: str, **fields: Any) -> LatentTransformer:
    torch.manual_seed(1)
    model = LatentTransformer(TransformerConfig(**{**SMALL, "kind": kind, **fields}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def exported(model: LatentTransformer, folder: Path) -> dict[str, Tensor]:
    export_published(model, folder / "out.pt")
    state: dict[str, Tensor] = torch.load(folder / "out.pt", weights_only=True)
    return state


def written(content: Any, folder: Path) -> Path:
    path = folder / "checkpoint.pt"
    torch.save(content, path)
    return path


def same(one: LatentTransformer, other: LatentTransformer) -> bool:
    x, t, y = torch.randn(2, *one.config.latent_shape), torch.rand(2), torch.tensor([3, 5])
    with torch.no_grad():
        return torch.equal(one(x, t, y), other(x, t, y))


# Names and shapes of a block and of the rest as the authors' files have them, written down apart from the reader.
NAMES = {
    "x_embedder.proj.weight": (32, 3, 2, 2), "x_embedder.proj.bias": (32,), "pos_embed": (1, 16, 32),
    "t_embedder.mlp.0.weight": (32, 256), "t_embedder.mlp.0.bias": (32,),
    "t_embedder.mlp.2.weight": (32, 32), "t_embedder.mlp.2.bias": (32,),
    "y_embedder.embedding_table.weight": (6, 32),
    "final_layer.linear.bias": (24,), "final_layer.linear.weight": (24, 32),
    "final_layer.adaLN_modulation.1.weight": (64, 32), "final_layer.adaLN_modulation.1.bias": (64,),
    **{
        f"blocks.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "attn.qkv.weight": (96, 32), "attn.qkv.bias": (96,), "attn.proj.weight": (32, 32), "attn.proj.bias": (32,),
            "mlp.fc1.weight": (128, 32), "mlp.fc1.bias": (128,), "mlp.fc2.weight": (32, 128), "mlp.fc2.bias": (32,),
            "adaLN_modulation.1.weight": (192, 32), "adaLN_modulation.1.bias": (192,),
        }.items()
    },
}  # fmt: skip
LIGHT = {
    "feat_rope.freqs_cos": (16, 16), "feat_rope.freqs_sin": (16, 16), "final_layer.norm_final.weight": (32,),
    "final_layer.linear.bias": (12,), "final_layer.linear.weight": (12, 32),
    **{
        f"blocks.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "norm1.weight": (32,), "norm2.weight": (32,), "attn.q_norm.weight": (16,), "attn.k_norm.weight": (16,),
            "mlp.w12.weight": (170, 32), "mlp.w12.bias": (170,), "mlp.w3.weight": (32, 85), "mlp.w3.bias": (32,),
        }.items()
    },
}  # fmt: skip


def test_names_and_shapes_are_the_published_ones(tmp_path: Path) -> None:
    dit = {name: tuple(tensor.shape) for name, tensor in exported(model_of("dit"), tmp_path).items()}
    assert dit == NAMES
    light = {name: tuple(t.shape) for name, t in exported(model_of("lightningdit"), tmp_path).items()}
    assert light == {name: shape for name, shape in {**NAMES, **LIGHT}.items() if ".mlp.fc" not in name}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("sit", {}), ("dit", {}), ("sit", {"qk_norm": True}),
        ("lightningdit", {}), ("lightningdit", {"position": "both"}), ("lightningdit", {"qk_norm": False}),
    ],
)  # fmt: skip
def test_out_and_back(kind: Any, fields: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(kind, **fields)
    export_published(model, tmp_path / "out.pt")
    told = kind == "lightningdit" or model.config.qk_norm
    back = load_published(tmp_path / "out.pt", kind, **({} if told else {"heads": 2}))
    assert back.config == model.config
    assert same(model, back)
    assert not back.training and not any(p.requires_grad for p in back.parameters())


def test_published_sit_has_unused_channels(tmp_path: Path) -> None:
    model = model_of("sit", learn_sigma=True)
    back = load_published(written(exported(model, tmp_path), tmp_path), "sit", heads=2)
    assert back.config.learn_sigma and same(model, back)


def test_training_checkpoints_hold_two_sets_and_wrapped_names(tmp_path: Path) -> None:
    raw, averaged = model_of("sit"), model_of("sit", num_classes=7)
    content = {
        "model": {f"module.{name}": tensor for name, tensor in exported(raw, tmp_path).items()},
        "ema": {f"_orig_mod.{name}": tensor for name, tensor in exported(averaged, tmp_path).items()},
        "opt": {"state": {}},
        "args": Namespace(model="SiT-XL/2", lr=1e-4),
    }
    path = written(content, tmp_path)
    assert same(load_published(path, "sit", heads=2), averaged)
    assert same(load_published(path, "sit", heads=2, ema=False), raw)
    assert unwrapped("module._orig_mod.blocks.1._orig_mod.attn.qkv.weight") == "blocks.1.attn.qkv.weight"


def test_half_precision_and_safetensors(tmp_path: Path) -> None:
    state = {name: tensor.bfloat16() for name, tensor in exported(model_of("lightningdit"), tmp_path).items()}
    save_file(state, tmp_path / "half.safetensors")
    back = load_published(tmp_path / "half.safetensors", "lightningdit")
    assert {p.dtype for p in back.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "fields"),
    [("dit-xl", {}), ("sit-b", {}), ("lightningdit-l", {}), ("lightningdit-xl", {"position": "both"})],
)
def test_shapes_of_published_sizes_tell_all(name: str, fields: dict[str, Any]) -> None:
    config = sized(name, **fields)
    with torch.device("meta"):
        model = LatentTransformer(config)
    shapes = {published_name(own): tuple(tensor.shape) for own, tensor in model.state_dict().items()}
    if config.kind == "lightningdit":
        shapes |= {f"feat_rope.freqs_{half}": (256, config.head_dim) for half in ("cos", "sin")}
    shapes["x_embedder.proj.weight"] = (config.width, 4, 2, 2)
    told = told_by_shapes(shapes, config.kind)
    assert TransformerConfig(**told, heads=heads(shapes, told)) == config


def test_missing_extra_and_reshaped_weights_are_named(tmp_path: Path) -> None:
    state = exported(model_of("dit"), tmp_path)
    del state["blocks.1.attn.proj.bias"]
    state["blocks.0.surprise"] = torch.zeros(1)
    state["t_embedder.mlp.2.bias"] = torch.zeros(7)
    with pytest.raises(UserError) as problem:
        load_published(written(state, tmp_path), "dit", heads=2)
    for part in (
        "1 missing (blocks.1.attn.proj.bias)", "1 unexpected (blocks.0.surprise)", "t_embedder.mlp.2.bias is [7] instead of [32]",
    ):  # fmt: skip
        assert part in str(problem.value)


def test_what_a_file_lacks_is_named_even_when_it_is_what_shapes_are_told_by(tmp_path: Path) -> None:
    state = exported(model_of("dit"), tmp_path)
    without = {name: tensor for name, tensor in state.items() if name != "pos_embed"}
    with pytest.raises(UserError, match=r"1 missing \(pos_embed\)$"):
        load_published(written(without, tmp_path), "dit", heads=2)
    other = {"encoder.weight": torch.zeros(2), "decoder.weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"missing \(.*x_embedder.*; 2 unexpected \(encoder.weight, decoder.weight\)"):
        load_published(written(other, tmp_path), "sit")


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    state = exported(model_of("dit"), tmp_path)
    state["blocks.1.attn.proj.bias"][3] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinite weights \(blocks.1.attn.proj.bias\)"):
        load_published(written(state, tmp_path), "dit", heads=2)


def test_rotary_tables_tell_a_lightningdit(tmp_path: Path) -> None:
    model = model_of("lightningdit", position="both")
    state = exported(model, tmp_path)
    with pytest.raises(UserError, match="holds rotary tables, as a LightningDiT has them"):
        load_published(written(state, tmp_path), "dit")
    bare = written({name: tensor for name, tensor in state.items() if "feat_rope" not in name}, tmp_path)
    with pytest.raises(UserError, match="holds no rotary tables"):
        load_published(bare, "lightningdit")
    assert same(load_published(bare, "lightningdit", position="both"), model)
    plain = load_published(bare, "lightningdit", position="sinusoidal")  # trained with use_rope: false
    assert plain.config.position == "sinusoidal" and not same(plain, model)


def test_rotations_alone_are_written_with_positions_of_zero(tmp_path: Path) -> None:
    """The authors' code always adds positions: zeros leave what it computes as it is here."""
    model = model_of("lightningdit")
    assert model.config.position == "rope"
    state = exported(model, tmp_path)
    assert state["pos_embed"].shape == (1, 16, 32) and not state["pos_embed"].any()
    added = copy.deepcopy(model)
    added.positions = state["pos_embed"][0]
    assert same(model, added)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    light = written(exported(model_of("lightningdit"), tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"unexpected .*feat_rope"):
        load_published(_with_another_table(light, tmp_path), "lightningdit")
    with pytest.raises(UserError, match="unknown kind of transformer 'sot'"):
        load_published(light, "sot")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="does not exist"):
        load_published(tmp_path / "absent.pt", "sit")


def _with_another_table(path: Path, folder: Path) -> Path:
    """A file with one more, unknown, table."""
    state = torch.load(path, weights_only=True)
    return written({**state, "feat_rope.more": torch.zeros(2)}, folder)


def test_overrides_must_agree_with_the_file(tmp_path: Path) -> None:
    path = written(exported(model_of("sit"), tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"depth=3 contradicts .*depth=2"):
        load_published(path, "sit", depth=3)
    with pytest.raises(UserError, match="field of a transformer 'hedas'"):
        load_published(path, "sit", hedas=2)
    with pytest.raises(UserError, match="does not tell 'heads'"):
        load_published(path, "sit")


def test_a_grid_that_is_not_square_must_be_given(tmp_path: Path) -> None:
    model = model_of("lightningdit", input=(12, 4))
    path = written(exported(model, tmp_path), tmp_path)
    with pytest.raises(UserError, match="does not tell 'input'"):
        load_published(path, "lightningdit")
    assert same(load_published(path, "lightningdit", input=(12, 4)), model)
    with pytest.raises(UserError, match=r"freqs_cos is not the table of rotations for 2x6 tokens"):
        load_published(path, "lightningdit", input=(4, 12))


def test_positions_of_the_file_are_used(tmp_path: Path) -> None:
    model = model_of("sit")
    state = exported(model, tmp_path)
    state["pos_embed"] = torch.randn(1, 16, 32)
    back = load_published(written(state, tmp_path), "sit", heads=2)
    changed = copy.deepcopy(model)
    changed.positions = state["pos_embed"][0]
    assert same(back, changed) and not same(back, model)


class Payload:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def test_files_that_run_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"ema": {"x": Payload()}}, tmp_path / "bad.pt", pickle_module=pickle)
    with pytest.raises(UserError, match="refused"):
        load_published(tmp_path / "bad.pt", "sit")
    assert "never" not in capsys.readouterr().out


def test_the_weights_of_a_sequence_model_have_no_published_form(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reads sequences"):
        export_published(model_of("sit", input=None, tokens=16), tmp_path / "out.pt")
