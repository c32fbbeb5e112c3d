"""Generated latents are those of the images, and the three distances are what their definitions say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import latentlab
from latentlab.data import open_data
from latentlab.encoding import encode_images
from latentlab.errors import UserError
from latentlab.latents import ArrayLatents
from latentlab.pixels import to_unit_range
from latentlab.quality.fashion_classifier import load_fashion_classifier
from latentlab.quality.fidelity import to_uint8
from latentlab.quality.reconstruction import reconstruction_scores
from latentlab.quality.sample_file import write_sample_file
from latentlab.study.generated_latents import FILE, PARTS, generate_with_latents, read_generated_latents
from latentlab.study.quality_lost import latent_quality, reconstruct, reconstruction_quality, sample_quality
from latentlab.tokenizers import load_tokenizer
from mind.baselines.flow_sampler import FlowSamplerSettings
from mind.baselines.generators import BaselineGenerator
from mind.baselines.latents import affine_of
from mind.baselines.transformer import LatentTransformer
from mind.baselines.transformer_config import TransformerConfig
from mind.generate import generate
from mind.open_generator import open_generator


def sit(tmp_path: Path, patch: int = 4) -> BaselineGenerator:
    """A SiT with fresh weights on the latents of the embedded KL autoencoder."""
    tokenizer = load_tokenizer("kl", release="fashion32")
    store = encode_images(tokenizer, open_data("fashion:test", limit=32), tmp_path / "store")
    torch.manual_seed(0)
    shape = TransformerConfig(
        depth=1, width=32, heads=2, patch=patch, in_channels=store.channels, input=store.grid, num_classes=10
    )
    network = LatentTransformer(shape)
    with torch.no_grad():
        for value in network.parameters():  # the last layer begins at zero
            value += 0.02 * torch.randn_like(value)
    settings = FlowSamplerSettings(steps=2)
    return BaselineGenerator(network, "sit", tokenizer, affine_of(store, tokenizer, "channel"), settings)


# --- latents --------------------------------------------------------------------------------------------------------


def test_latents_decode_to_the_images(tmp_path: Path) -> None:
    """And the images are those of plain generation, in batches that do not divide their number."""
    generator = sit(tmp_path)
    made = generate_with_latents(generator, tmp_path / "run", n=11, seed=4, batch_size=4)
    plain = generate(sit(tmp_path), tmp_path / "plain", n=11, seed=4)
    latents = read_generated_latents(tmp_path / "run")
    assert latents.n == 11 and np.array_equal(latents.labels, made.images.labels)
    everything = slice(None)
    batches = np.abs(made.images.levels(everything).astype(int) - plain.images.levels(everything))
    assert (
        batches.max() <= 1 and np.mean(batches > 0) < 1e-3
    )  # some processors round batches of 4 and of 11 differently
    decoded = to_uint8(generator.tokenizer.decode(latents.take(everything))).permute(0, 2, 3, 1)
    difference = np.abs(decoded.numpy().astype(int) - made.images.levels(everything))
    assert difference.max() <= 1  # decoded in one batch, which rounds otherwise
    assert not list((tmp_path / "run" / PARTS).glob("*"))


def test_samples_and_reconstructions_are_decoded_in_float32_on_a_gpu(tmp_path: Path) -> None:
    """As far as a CPU can tell: what a GPU is told while the decoder runs."""
    generator, told = sit(tmp_path), []
    generator.tokenizer.decoder.register_forward_pre_hook(lambda *_: told.append(torch.backends.cudnn.allow_tf32))
    generate(generator, tmp_path / "run", n=2)
    reconstruction_scores(generator.tokenizer, open_data("fashion:test", limit=2))
    assert told == [False, False]


def test_batches_of_generation_have_as_many_tokens_whatever_the_patch(tmp_path: Path) -> None:
    assert sit(tmp_path, patch=4).batch_size * 4 == sit(tmp_path, patch=2).batch_size * 16 > 16


def test_lost_latents_are_drawn_again(tmp_path: Path) -> None:
    """Both the file of a finished run and, of an interrupted one, single parts."""
    folder = tmp_path / "run"
    generate_with_latents(sit(tmp_path), folder, n=6, seed=1)
    first = load_file(folder / FILE)
    (folder / FILE).unlink()
    generate_with_latents(sit(tmp_path), folder, n=6, seed=1)
    torch.testing.assert_close(load_file(folder / FILE)["latents"], first["latents"])


def test_latents_of_codes_are_code_vectors(tmp_path: Path) -> None:
    generator = open_generator("fashion32", settings={"steps": 2})
    made = generate_with_latents(generator, tmp_path / "run", n=4)
    latents = read_generated_latents(tmp_path / "run")
    book = generator.tokenizer.codebook
    rows = latents.take(slice(None)).movedim(1, -1).flatten(0, -2).double()
    assert torch.cdist(rows, book.double()).min(1).values.max() < 1e-4
    decoded = to_uint8(generator.tokenizer.decode(latents.take(slice(None)))).permute(0, 2, 3, 1)
    assert np.abs(decoded.numpy().astype(int) - made.images.levels(slice(None))).max() <= 1


def given(folder: Path, latents: torch.Tensor) -> Path:
    folder.mkdir()
    save_file({"latents": latents.contiguous(), "labels": torch.arange(len(latents)) % 10}, folder / FILE)
    return folder


def training_latents(n: int = 2000) -> ArrayLatents:
    rng = np.random.default_rng(0)
    spreads = np.array([0.5, 4.0])[:, None, None]
    return ArrayLatents(rng.standard_normal((n, 2, 2, 3)) * spreads + 3, labels=np.arange(n) % 10)


def test_distance_of_latents_has_closed_forms(tmp_path: Path) -> None:
    """Shifted by 0.5 channel deviations: d / 4. Twice as far from the mean: tr S (2 - 1)^2 of the normalised covariance S."""
    store = training_latents()
    z = store.take(slice(None))
    std = store.moments.std[:, None, None]
    shifted = latent_quality(given(tmp_path / "shifted", z + 0.5 * std), store)
    assert shifted["fd_latents"] == pytest.approx(12 / 4, rel=1e-4)
    assert (shifted["n_latents"], shifted["latent_dimension"]) == (2000, 12)
    centre = z.mean(0, keepdim=True)
    wider = latent_quality(given(tmp_path / "wider", centre + 2 * (z - centre)), store)
    trace = float((z / std).flatten(1).var(0).sum())
    assert wider["fd_latents"] == pytest.approx(trace, rel=1e-4)
    assert wider["fd_latents_low"] < trace < wider["fd_latents_high"]


def test_floor_of_latents_is_the_bias_of_the_moments(tmp_path: Path) -> None:
    """About d (d+5) / 4 (1/n + 1/m) for n white latents of d dimensions against m others; fewer than n others: none."""
    store = training_latents(4000)
    z = store.take(slice(None))
    found = latent_quality(given(tmp_path / "some", z[:200]), store)
    assert found["fd_latents_floor"] == pytest.approx(12 * 17 / 4 * (1 / 200 + 1 / 3800), rel=0.35)
    assert latent_quality(given(tmp_path / "most", z[:2500]), store)["fd_latents_floor"] is None
    few = latent_quality(given(tmp_path / "few", z[:10]), store)
    assert "covariances are singular" in few["warnings"][0] and "fd_latents_low" not in few


def test_refuses_latents_that_are_missing_or_of_another_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made without keeping latents"):
        read_generated_latents(tmp_path)
    with pytest.raises(UserError, match="not of one tokenizer"):
        latent_quality(given(tmp_path / "other", torch.zeros(20, 2, 3, 3)), training_latents())


# --- images ---------------------------------------------------------------------------------------------------------


def levels(n: int, first: int = 0) -> np.ndarray:
    return open_data("fashion:test").images(np.arange(first, first + n)).permute(0, 2, 3, 1).numpy()


def as_file(path: Path, images: np.ndarray) -> Path:
    write_sample_file(path, images.shape[:3], [images], np.zeros(len(images), np.int64))
    return path


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance by the classifier's own features."""
    moments: list[Any] = []
    for images in (first, second):
        pixels = to_unit_range(torch.from_numpy(images).permute(0, 3, 1, 2))
        with torch.no_grad():
            rows = load_fashion_classifier().describe(pixels).double().numpy()
        moments += [rows.mean(0), np.cov(rows.T)]
    return latentlab.frechet_distance(*moments)


def test_quality_of_samples(tmp_path: Path) -> None:
    made, real, middle = levels(150), levels(200, 500), levels(150, 1000)
    samples, reference, others = (
        as_file(tmp_path / f"{name}.npz", images) for name, images in (("a", made), ("b", real), ("c", middle))
    )
    found = sample_quality(samples, str(reference), ["fashion-classifier"], others)
    assert found["gfd_fashion_classifier"] == pytest.approx(distance(made, real), rel=1e-3)
    assert found["gfd_reconstructions_fashion_classifier"] == pytest.approx(distance(made, middle), rel=1e-3)
    assert found["gfd_fashion_classifier_low"] < found["gfd_fashion_classifier"] < found["gfd_fashion_classifier_high"]
    assert found["n_samples"] == 150
    kept = [np.load(file, mmap_mode="r").shape[0] for file in (tmp_path / "home" / "features").glob("*.npy")]
    assert sorted(kept) == [150, 200]  # of the reconstructions and of the reference, not of the samples
    noisy = np.clip(made + np.random.default_rng(0).normal(0, 60, made.shape), 0, 255).astype(np.uint8)
    worse = sample_quality(as_file(tmp_path / "d.npz", noisy), str(reference), ["fashion-classifier"])
    assert worse["gfd_fashion_classifier"] > 3 * found["gfd_fashion_classifier"]
    for name in ("precision_fashion_classifier", "recall_fashion_classifier"):
        assert 0 <= worse[name] < found[name] <= 1 and f"{name}_low" in found
    assert "gfd_reconstructions_fashion_classifier" not in worse
    with pytest.raises(UserError, match="make as many as samples"):
        sample_quality(samples, str(reference), ["fashion-classifier"], reference)


def test_precision_and_recall_are_against_as_many_real_images(tmp_path: Path) -> None:
    for i, image in enumerate(levels(40, 100)):
        folder = tmp_path / "real" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    samples = as_file(tmp_path / "a.npz", levels(20))
    found = sample_quality(samples, f"imagefolder:{tmp_path / 'real'}", ["fashion-classifier"])
    assert any("precision_fashion_classifier: 20 generated and 20 real images" in text for text in found["warnings"])


def test_reconstructions_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("kl", release="fashion32")
    path = reconstruct(tokenizer, "fashion:test", 120, tmp_path / "r.npz")
    images = open_data("fashion:test", limit=120)
    originals = images.images(np.arange(120))
    decoded = to_uint8(tokenizer.decode(tokenizer.encode(to_unit_range(originals)))).permute(0, 2, 3, 1).numpy()
    with np.load(path) as kept:
        assert np.abs(kept["arr_0"].astype(int) - decoded).max() <= 1 and np.array_equal(kept["arr_1"], images.labels)
    real = as_file(tmp_path / "b.npz", originals.permute(0, 2, 3, 1).numpy())
    found = reconstruction_quality(path, str(real), ["fashion-classifier"])
    expected = distance(decoded, originals.permute(0, 2, 3, 1).numpy())
    assert found["rfd_fashion_classifier"] == pytest.approx(expected, rel=0.02)
    assert found["n_reconstructions"] == 120
    with pytest.raises(UserError, match="fewer than the 20000 samples"):
        reconstruct(tokenizer, "fashion:test", 20000, tmp_path / "s.npz")
