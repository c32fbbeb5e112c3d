"""Training, exporting and sampling every baseline on the embedded latents, with tiny networks."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentlab.data import open_data
from latentlab.encoding import encode_images
from latentlab.errors import UserError
from latentlab.store import LatentStore
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.zoo import embedded_path
from latentlab.weights import read_metadata
from mind.baselines.generators import sampler_settings
from mind.baselines.latents import Affine, LatentSet, affine_of
from mind.baselines.masked_network import MaskedTransformer
from mind.baselines.masked_settings import FAMILY_SAMPLERS
from mind.baselines.open import open_baseline
from mind.baselines.recipes import BaselineRecipe
from mind.baselines.run_configs import FlowRun, MaskedRun, load_run, masked_of, transformer_of
from mind.baselines.transformer import LatentTransformer
from mind.baselines.weight_files import load_baseline, read_baseline_header
from mind.generate import sample_images
from mind.stores import chosen_tokenizer, open_stores
from mind.training import Trainer, train

CPU = torch.device("cpu")
TINY = [
    "optimiser.steps=4", "optimiser.batch_size=4", "optimiser.warmup_steps=1", "data.limit=24", "model.width=16",
    "model.depth=2", "model.heads=2", "precision=float32", "log_every=2", "validate_every=0", "checkpoint_every=2",
    "export_dtype=float32", "preview.sampler.steps=2", "preview.grid_every=0",
]  # fmt: skip
KINDS = ("sit", "lightningdit", "dit", "emigm")

pytestmark = pytest.mark.usefixtures("own_cache")


def run(kind: str, out: Path, *overrides: str) -> Path:
    config = load_run(kind, f"{kind}-fashion", [*TINY, *overrides])
    return train(config, partial(BaselineRecipe, config), out, device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_trains_exports_and_samples(kind: str, tmp_path: Path) -> None:
    path = run(kind, tmp_path / "a run")
    network, header = load_baseline(path)
    assert header.kind == kind and header.tokenizer.name == ("ibq" if kind == "emigm" else "kl")
    assert (header.affine is None) == (kind == "emigm") and header.metadata["steps"] == "4"
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    generator = open_baseline(kind, path.parent)
    labels = [3, 1, 4, 1, 5]
    images = sample_images(generator, labels, seed=7)
    assert images.shape == (5, 32, 32, 3) and images.std() > 0
    split = np.concatenate([sample_images(generator, labels, seed=7, part=slice(i, i + 1)) for i in range(5)])
    assert np.abs(images.astype(int) - split).mean() < 0.05  # a sample does not depend on its batch


def test_half_precision_rounds_weights_and_no_tables(tmp_path: Path) -> None:
    path = run("sit", tmp_path, "export_dtype=bfloat16")
    network, header = load_baseline(path)
    assert isinstance(network, LatentTransformer)
    assert torch.equal(network.positions, LatentTransformer(network.config).positions)
    stored = load_file(path)
    assert {tensor.dtype for name, tensor in stored.items() if name != "positions"} == {torch.bfloat16}
    save_file(
        {name: tensor.bfloat16() for name, tensor in stored.items()}, tmp_path / "old.safetensors", header.metadata
    )
    old, _ = load_baseline(tmp_path / "old.safetensors")  # as earlier versions wrote it
    assert isinstance(old, LatentTransformer) and torch.equal(old.positions, network.positions.bfloat16().float())


@pytest.mark.parametrize("kind", KINDS)
def test_continues_bit_by_bit(kind: str, tmp_path: Path) -> None:
    whole = run(kind, tmp_path / "whole")
    config = load_run(kind, f"{kind}-fashion", TINY)
    half = Trainer(config, lambda: BaselineRecipe(config, CPU), tmp_path / "half", CPU)
    for _ in range(2):
        half.train_step()
    half.save()
    half.train_step()  # lost, as if killed here
    again = run(kind, tmp_path / "half")
    for one, other in zip(load_baseline(whole)[0].parameters(), load_baseline(again)[0].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["emigm-kl-fashion", "mar-fashion", "maskgit-fashion", "mdm-fashion"])
def test_shipped_masked_generators_train_and_sample(name: str, tmp_path: Path) -> None:
    smaller = ["model.head_depth=1", "model.head_width=16", "preview.sampler.head_steps=2"]
    config = load_run("emigm", name, [*TINY, *smaller])
    path = train(config, partial(BaselineRecipe, config), tmp_path / "run", device="cpu")
    network, header = load_baseline(path)
    codes = name in ("maskgit-fashion", "mdm-fashion")
    assert (header.affine is None) == codes and (network.config.vocab_size is not None) == codes
    generator = open_baseline("emigm", path)
    family = FAMILY_SAMPLERS[config.family]
    for field in family.keys() - config.preview.sampler.keys():
        assert getattr(generator.settings, field) == family[field]
    assert sample_images(generator, [0, 1]).shape == (2, 32, 32, 3)


FULL_SCALE = [
    # kind, configuration, latents, millions of parameters, epochs of ImageNet's 1,281,167 images
    ("sit", "sit-b", (32, 16, 16), 130, 79.9), ("sit", "sit-xl", (32, 16, 16), 675, 16.0),
    ("lightningdit", "lightningdit-b", (32, 16, 16), 130, 79.9), ("lightningdit", "lightningdit-xl", (32, 16, 16), 675, 79.9),
    ("dit", "dit-xl", (4, 32, 32), 675, 1399), ("emigm", "emigm-b", (16, 16, 16), 208, 800),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "shape", "millions", "epochs"), FULL_SCALE)
def test_full_scale_configurations_have_the_published_size_and_length(
    kind: str, name: str, shape: tuple[int, ...], millions: int, epochs: float
) -> None:
    run = load_run(kind, name)
    network: torch.nn.Module
    with torch.device("meta"):
        if isinstance(run, MaskedRun):
            network = MaskedTransformer(masked_of(run, shape, None))
        else:
            config = transformer_of(run, shape)
            network = LatentTransformer(config)
            assert config.qk_norm == (kind != "dit")  # the study normalises queries and keys everywhere
    assert abs(sum(p.numel() for p in network.parameters()) / 1e6 - millions) < 0.5
    assert run.optimiser.steps * run.optimiser.batch_size / 1_281_167 == pytest.approx(epochs, rel=1e-3)
    sampler_settings(kind, run.preview.sampler)


def test_continuous_emigm_has_the_parameters_of_sit() -> None:
    """Generators are compared at equal parameters: 8x8 latents of 8 channels."""
    sit, emigm = load_run("sit", "sit-fashion"), load_run("emigm", "emigm-kl-fashion")
    assert isinstance(sit, FlowRun) and isinstance(emigm, MaskedRun)
    networks = LatentTransformer(transformer_of(sit, (8, 8, 8))), MaskedTransformer(masked_of(emigm, (8, 8, 8), None))
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert abs(counts[0] / counts[1] - 1) < 0.03


def test_accumulated_parts_do_not_change_the_step(tmp_path: Path) -> None:
    whole, parts = (run("sit", tmp_path / name, f"optimiser.accumulate={n}") for name, n in (("one", 1), ("two", 2)))
    for one, other in zip(load_baseline(whole)[0].parameters(), load_baseline(parts)[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def stores(tokenizer: str = "kl") -> list[LatentStore]:
    config = load_run("sit", "sit-fashion", [*TINY, f"data.tokenizer={tokenizer}", "data.validation=null"])
    return open_stores(config.data, chosen_tokenizer(config.data, CPU), CPU, "float32").train


def test_latents_are_normalised_and_mirrored_where_asked() -> None:
    both = stores()
    affine = affine_of(both[0], chosen_tokenizer(load_run("sit", "sit-fashion", TINY).data, CPU), "channel")
    data = LatentSet(both, affine, 10)
    everything, labels = data.take(torch.arange(data.n), torch.zeros(data.n, dtype=torch.bool))
    assert everything.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(
        everything.std((0, 2, 3), correction=1), torch.ones(everything.shape[1]), atol=1e-4, rtol=0
    )
    assert torch.equal(labels, torch.from_numpy(both[0].labels))
    some, _ = data.take(torch.tensor([5, 2]), torch.tensor([True, False]))
    torch.testing.assert_close(affine.restore(some[0:1])[0], both[1].take(np.array([5]))[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(affine.restore(some[1:2])[0], both[0].take(np.array([2]))[0], atol=1e-5, rtol=1e-5)


def test_a_store_with_mirrored_latents_is_trained_on_both_sides_with_equal_chances(tmp_path: Path) -> None:
    """One folder as `latentlab encode --flip` writes it. The side is a function of seed, place in the step, and step."""
    images = open_data("fashion:train", limit=24)
    tokenizer = load_tokenizer("kl", release="fashion32")
    store = encode_images(tokenizer, images, tmp_path / "store", flip=True)
    everything = torch.arange(24)

    def batches(*overrides: str, steps: int = 12) -> torch.Tensor:
        data = ["data.train=null", "data.limit=null", "data.validation=null", f"data.store={tmp_path / 'store'}"]
        recipe = BaselineRecipe(load_run("sit", "sit-fashion", [*TINY, *data, *overrides]), CPU)
        return torch.stack([recipe.batch(everything, everything, step)[0] for step in range(steps)])

    affine = affine_of(store, tokenizer, "channel")
    plain, mirrored = (affine.normalise(side.take(slice(None))) for side in (store, store.mirrored()))
    drawn = batches()
    sides = (drawn == mirrored).flatten(2).all(2)
    assert ((drawn == plain).flatten(2).all(2) ^ sides).all()
    share = float(sides.double().mean())  # of 288 draws: a deviation of 0.03
    assert abs(share - 0.5) < 0.12 and (sides[0] != sides[1]).any()
    assert torch.equal(batches(), drawn)
    assert not torch.equal(batches("seed=1"), drawn)
    assert torch.equal(batches("data.mirror=false", steps=2), torch.stack([plain, plain]))


def test_other_latents_in_the_same_place_do_not_continue_a_run(tmp_path: Path) -> None:
    tokenizer, store = load_tokenizer("kl", release="fashion32"), tmp_path / "store"
    data = ["data.train=null", "data.limit=null", "data.validation=null", "validate_every=0", f"data.store={store}"]
    encode_images(tokenizer, open_data("fashion:train", limit=24), store)
    run("sit", tmp_path / "run", *data)
    run("sit", tmp_path / "run", *data)  # unchanged, it is finished
    encode_images(tokenizer, open_data("fashion:train", limit=30), store)
    with pytest.raises(UserError, match=r"holds a run on data that have changed since \(data.store is "):
        run("sit", tmp_path / "run", *data)


def test_another_tokenizer_in_the_same_place_does_not_continue_a_run(tmp_path: Path) -> None:
    """Of the configuration and of the images nothing changes."""
    weights = tmp_path / "kl.safetensors"
    header = read_metadata(embedded_path("kl", "fashion32"))
    state = load_file(embedded_path("kl", "fashion32"))
    save_file(state, weights, metadata=header)
    run("sit", tmp_path / "run", f"data.weights={weights}")
    run("sit", tmp_path / "run", f"data.weights={weights}")  # unchanged, it is finished
    save_file({name: 2 * tensor for name, tensor in state.items()}, weights, metadata=header)
    with pytest.raises(UserError, match=r"holds a run on data that have changed since \(data.tokenizer is "):
        run("sit", tmp_path / "run", f"data.weights={weights}")


def test_latents_that_are_not_numbers_are_named(tmp_path: Path) -> None:
    """Somebody else's folder, whose plain latents are fine and so are their statistics."""
    latents = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    mirrored = latents.flip(-1).clone()
    mirrored[3, 1, 2, 0] = torch.nan
    content = {"latents": latents, "latents_flip": mirrored, "labels": torch.zeros(6, dtype=torch.int64)}
    save_file(content, tmp_path / "latents_rank00_shard000.safetensors")
    store = LatentStore(tmp_path)
    data = LatentSet([store, store.mirrored()], Affine((0.0, 0.0), (1.0, 1.0)), 1)
    everything, every = torch.arange(6), torch.ones(6, dtype=torch.bool)
    assert data.take(everything, ~every)[0].isfinite().all()
    with pytest.raises(UserError, match=r"the latent of image 3 \(mirrored\) is NaN or infinite"):
        data.take(everything, every)


def test_sequences_are_normalised_along_their_last_dimension() -> None:
    affine = Affine((1.0, 2.0), (0.5, 4.0))
    tokens = torch.tensor([[[3.0, 2.5], [1.0, 2.0]]])
    assert affine.normalise(tokens).tolist() == [[[1.0, 2.0], [0.0, 0.0]]]
    assert torch.equal(affine.restore(affine.normalise(tokens)), tokens)


@pytest.mark.parametrize(
    ("kind", "overrides", "problem"),
    [
        ("sit", ["flow.times=cosine"], r"flow: times: Input should be 'uniform' or 'logit_normal'"),
        ("lightningdit", ["flow.cosine_wieght=1"], r"flow: unknown key 'cosine_wieght'\. Did you mean cosine_weight"),
        ("dit", ["loss.vlb_weight=-1"], r"loss\.vlb_weight"),
        ("emigm", ["family=maskgit", "codes=false"], "family maskgit is of codes: set codes=true"),
        ("emigm", ["family=mar"], "family mar is of continuous latents: leave codes out"),
        ("emigm", ["family=marr"], "family"),
        ("sit", ["flow.kind=lightningdit"], "flow: unknown key 'kind'"),
        ("sit", ["model.dpth=2"], r"unknown key of model 'dpth'\. Did you mean depth"),
        ("emigm", ["model.head_dpth=2"], r"unknown key of model 'head_dpth'\. Did you mean head_depth"),
        ("dit", ["optimiser.lr=1"], r"unknown key of optimiser 'lr'.*Available: .*learning_rate"),
        ("sit", ["model.kind=dit"], r"model\.kind: the kind of the model is that of the run: leave it out"),
        ("emigm", ["model.size=null"], "model: size must be a name, got None"),
        ("dit", ["optimiser.betas=[0.9,1.0]"], r"optimiser\.betas\.1: Input should be less than 1"),
    ],
)
def test_configurations_that_cannot_be_are_refused_before_anything_is_opened(
    kind: str, overrides: list[str], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        load_run(kind, f"{kind}-fashion", overrides)


@pytest.mark.parametrize(
    ("kind", "override", "problem"),
    [
        ("sit", "model.heads=3", r"heads \(3\) must divide width \(16\)"),
        ("dit", "model.name=x", "unknown key of model 'name'"),
        ("emigm", "model.size=xx", "unknown masked generator size 'emigm-xx'"),
        ("sit", "model.in_channels=5", r"the latents are \(8, 8, 8\), the model's \(5, 8, 8\)"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_images_are_encoded(
    kind: str, override: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    with pytest.raises(UserError, match=problem):
        run(kind, tmp_path / "run", override)
    assert not list(tmp_path.glob("home/stores/*"))


def test_published_checkpoints_are_told_from_files_of_our_own(tmp_path: Path) -> None:
    torch.save({"pos_embed": torch.zeros(1)}, tmp_path / "SiT-XL-2-256x256.pt")
    with pytest.raises(UserError, match=r"load_published reads those of the authors"):
        open_baseline("sit", tmp_path / "SiT-XL-2-256x256.pt")


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels 0 to 9, the model 3 classes: set model\.num_classes"):
        run("sit", tmp_path / "a", "model.num_classes=3")
    with pytest.raises(UserError, match="flow sampler settings: unknown key 'stepz'"):
        run("sit", tmp_path / "b", "preview.sampler.stepz=3")
    with pytest.raises(UserError, match="'kl' is continuous and has none"):
        run("emigm", tmp_path / "c", "data.tokenizer=kl")
    path = run("dit", tmp_path / "d")
    with pytest.raises(UserError, match="holds weights of dit: use latentlab sample dit"):
        open_baseline("sit", path)
    with pytest.raises(UserError, match=r"holds no sit_ema\.safetensors"):
        open_baseline("sit", path.parent)
    with pytest.raises(UserError, match="give a file that `latentlab train` exported"):
        read_baseline_header(next(Path(__file__).parents[3].glob("latentlab/tokenizers/weights/ibq*.safetensors")))
