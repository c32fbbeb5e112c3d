"""Training, exporting and sampling every baseline on the embedded latents, with tiny networks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentlab.errors import UserError
from latentlab.store import LatentStore
from mind.baselines.latents import Affine, LatentSet, affine_of
from mind.baselines.open import open_baseline
from mind.baselines.recipes import BaselineRecipe
from mind.baselines.run_configs import load_run
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


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLAB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def run(kind: str, out: Path, *overrides: str) -> Path:
    config = load_run(kind, f"{kind}-fashion", [*TINY, *overrides])
    return train(config, lambda where: BaselineRecipe(config, where), out, device="cpu")


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


def test_masked_generators_learn_continuous_latents_too(tmp_path: Path) -> None:
    path = run("emigm", tmp_path, "codes=false", "data.tokenizer=kl", "model.head_depth=1", "model.head_width=16",
               "preview.sampler.head_clip=4", "preview.sampler.head_steps=2")  # fmt: skip
    header = read_baseline_header(path)
    assert header.affine is not None and header.config["vocab_size"] is None
    assert sample_images(open_baseline("emigm", path), [0, 1]).shape == (2, 32, 32, 3)


def test_accumulated_parts_do_not_change_the_step(tmp_path: Path) -> None:
    whole, parts = (run("sit", tmp_path / name, f"optimiser.accumulate={n}") for name, n in (("one", 1), ("two", 2)))
    for one, other in zip(load_baseline(whole)[0].parameters(), load_baseline(parts)[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def stores(tokenizer: str = "kl") -> list[LatentStore]:
    config = load_run("sit", "sit-fashion", [*TINY, f"data.tokenizer={tokenizer}"])
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


def test_sequences_are_normalised_along_their_last_dimension() -> None:
    affine = Affine((1.0, 2.0), (0.5, 4.0))
    tokens = torch.tensor([[[3.0, 2.5], [1.0, 2.0]]])
    assert affine.normalise(tokens).tolist() == [[[1.0, 2.0], [0.0, 0.0]]]
    assert torch.equal(affine.restore(affine.normalise(tokens)), tokens)


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels 0 to 9, the model 3 classes: set model\.num_classes"):
        run("sit", tmp_path / "a", "model.num_classes=3")
    with pytest.raises(UserError, match="flow sampler settings: stepz"):
        run("sit", tmp_path / "b", "preview.sampler.stepz=3")
    with pytest.raises(UserError, match="'kl' is continuous and has none"):
        run("emigm", tmp_path / "c", "data.tokenizer=kl")
    path = run("dit", tmp_path / "d")
    with pytest.raises(UserError, match="holds weights of dit: use latentlab sample dit"):
        open_baseline("sit", path)
    with pytest.raises(UserError, match=r"holds no sit\.safetensors"):
        open_baseline("sit", path.parent)
    with pytest.raises(UserError, match="give a file that `latentlab train` exported"):
        read_baseline_header(next(Path(__file__).parents[3].glob("latentlab/tokenizers/weights/ibq*.safetensors")))
