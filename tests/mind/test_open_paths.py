"""Weights of any kind are opened by what their header says, with the settings of an ODE, whatever they recommend."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentlab import tokenizers
from latentlab.data import open_data
from latentlab.encoding import cached_store_path, encode_images
from latentlab.errors import UserError
from latentlab.files import file_sha256
from latentlab.tokenizers import load_tokenizer
from latentlab.trajectories import measure_paths
from latentlab.weights import read_metadata
from mind import Mind, save_mind, sized
from mind.baselines import sized as transformer_sized
from mind.baselines.latents import Affine
from mind.baselines.masked_config import sized as masked_sized
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.transformer import LatentTransformer
from mind.baselines.weight_files import save_baseline
from mind.open_paths import NAMES, kind_of, open_paths
from mind.weight_files import TokenizerRecord

KL = TokenizerRecord(name="kl", release="fashion32")
IBQ = TokenizerRecord(name="ibq", release="fashion32")
SHAPE: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "num_classes": 10}
RECOMMENDED = {"cfg_scale": 1.5, "steps": 7}
SHIFT, SCALE = tuple(i / 4 for i in range(8)), tuple(0.5 + i / 8 for i in range(8))


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Fresh networks answer 0 to everything."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return network


def weights(folder: Path, kind: str) -> Path:
    """A small generator of a kind, under the name that a training run gives it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.safetensors"
    header = {"sampler": json.dumps(RECOMMENDED)}
    if kind == "mind":
        fields = {"hidden_size": 32, "num_heads": 2, "num_blocks": 1, "cond_dim": 16, "mapper_width": 32}
        mind = Mind(sized("mind-fashion", **fields))
        shaken(mind)
        save_mind(path, mind.state_dict(), mind.config, {"tokenizer": IBQ.model_dump_json(), **header})
        return path
    if kind == "emigm":
        shape: dict[str, Any] = {**SHAPE, "depth": 2, "in_channels": 16, "input": (8, 8), "patch": 1, "vocab_size": 512}
        masked = MaskedTransformer(masked_sized("emigm-xs", "emigm", **shape))
        save_baseline(path, masked, kind, None, IBQ, torch.float32, header)
        return path
    network = LatentTransformer(transformer_sized(f"{kind}-s", **SHAPE, in_channels=8, input=(8, 8), patch=4))
    recommended = {**RECOMMENDED, "solver": "ancestral" if kind == "dit" else "sde"}
    shaken(network)
    save_baseline(path, network, kind, Affine(SHIFT, SCALE), KL, torch.float32, {"sampler": json.dumps(recommended)})
    return path


@pytest.mark.parametrize("kind", ["mind", "sit", "lightningdit", "dit"])
def test_opened_by_file_and_by_folder_as_an_ode(kind: str, tmp_path: Path) -> None:
    file = weights(tmp_path / "a run", kind)
    opened = open_paths(file)
    assert kind_of(file) == kind_of(file.parent) == opened.kind == kind and kind in NAMES
    sampler = opened.paths.facts()["sampler"]
    assert (sampler["steps"], sampler["cfg_scale"]) == (50, 1.0) and opened.paths.facts()["generator"] == kind
    assert len(opened.paths.times) == 51 and opened.paths.times[-1] == 1 and opened.paths.times[0] < 0.01
    assert opened.tokenizer.spec.name == ("ibq" if kind == "mind" else "kl")
    quick = open_paths(file.parent, averaged=False, settings={"steps": 4, "cfg_scale": 2.0})
    labels = torch.arange(5)
    found = [measure_paths(quick.paths, labels, seed=3, batch_size=size) for size in (5, 2)]
    assert found[0].value == pytest.approx(found[1].value, rel=1e-5) and -1 < found[0].value < 1
    unguided = open_paths(file, settings={"steps": 4}).paths
    assert abs(measure_paths(unguided, labels, seed=3).value - found[0].value) > 1e-6


def test_latents_are_normalised_as_the_weights_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    opened, images = open_paths(weights(tmp_path, "sit")), open_data("fashion:test", limit=6)
    store = encode_images(opened.tokenizer, images, cached_store_path(opened.tokenizer, images))
    taken = opened.paths.latents(store).take(slice(0, 6))
    shift, scale = (torch.tensor(values).view(1, 8, 1, 1) for values in (SHIFT, SCALE))
    torch.testing.assert_close(taken, (store.take(slice(0, 6)) - shift) * scale)
    other = encode_images(load_tokenizer("ae", release="fashion32"), images, tmp_path / "ae")
    with pytest.raises(UserError, match=r"was made by 'ae' .* encode with 'kl' .fashion32."):
        opened.paths.latents(other)


def test_of_a_run_the_averaged_weights_are_taken_unless_the_raw_ones_are_asked_for(tmp_path: Path) -> None:
    file = weights(tmp_path, "sit")
    with pytest.raises(UserError, match=r"holds no sit_ema\.safetensors"):
        open_paths(tmp_path)
    state = {name: 2 * tensor for name, tensor in load_file(file).items()}
    kept = LatentTransformer(transformer_sized("sit-s", **SHAPE, in_channels=8, input=(8, 8), patch=4))
    kept.load_state_dict(state)
    header = {"weights": "averaged"}
    averages = tmp_path / "sit_ema.safetensors"
    save_baseline(averages, kept, "sit", Affine(SHIFT, SCALE), KL, torch.float32, header)
    sums = {
        averaged: open_paths(tmp_path, averaged=averaged).paths.facts()["weights_sha256"]
        for averaged in (None, False, True)
    }
    assert sums == {None: file_sha256(averages), True: file_sha256(averages), False: file_sha256(file)}
    assert open_paths(file).paths.facts()["weights_sha256"] == file_sha256(file)
    for path, averaged, said in ((file, True, "raw weights only.* leave out --averaged"), (averages, False, "--raw")):
        with pytest.raises(UserError, match=said):
            open_paths(path, averaged=averaged)


def test_what_has_no_paths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds weights of eMIGM, which unmasks tokens and has no ODE"):
        open_paths(weights(tmp_path / "e", "emigm"))
    with pytest.raises(UserError, match="eMIGM"):
        open_paths(tmp_path / "e")
    for kind in ("sit", "dit"):
        weights(tmp_path / "two", kind)
    with pytest.raises(UserError, match=r"holds sit\.safetensors and dit\.safetensors: give the file"):
        open_paths(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no weights of a generator: .* is the run finished"):
        open_paths(tmp_path / "empty")
    with pytest.raises(UserError, match=r"gone\.safetensors does not exist"):
        open_paths(tmp_path / "gone.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "new.safetensors", metadata={"generator": "sana"})
    with pytest.raises(UserError, match="a generator 'sana' that this latentlab does not know"):
        open_paths(tmp_path / "new.safetensors")
    tokenizer = next((Path(tokenizers.__file__).parent / "weights").glob("kl*.safetensors"))
    with pytest.raises(UserError, match="holds a tokenizer, not a generator"):
        open_paths(tokenizer)
    with pytest.raises(UserError, match="says what model it holds: leave out noise_factor"):
        open_paths(tmp_path / "two" / "sit.safetensors", model={"noise_factor": 0.8})
    with pytest.raises(UserError, match="solver=sde draws some on the way"):
        open_paths(tmp_path / "two" / "sit.safetensors", settings={"solver": "sde"})


@pytest.mark.parametrize("kind", ["mind", "sit", "dit"])
def test_weights_that_are_not_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    file = weights(tmp_path, kind)
    state, metadata = load_file(file), read_metadata(file)
    name = max(state, key=lambda one: state[one].numel())
    state[name].flatten()[3] = torch.nan
    save_file(state, file, metadata=dict(metadata))
    with pytest.raises(UserError, match=r"NaN|not finite"):
        open_paths(file)
