"""A tiny random MIND over the embedded tokenizer: the same images for every batch size, and after every kind of interruption."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from latentlab import UserError, load_tokenizer
from latentlab.quality.fidelity import to_uint8
from latentlab.quality.sample_parts import SampleParts
from mind import Mind, SamplerSettings, sample, sized
from mind.generate import Drawn, check_classes, generate, sample_images, wanted_labels
from mind.pipeline import MindGenerator, token_grid

TINY = {"hidden_size": 32, "num_heads": 2, "num_blocks": 1, "cond_dim": 16, "mapper_width": 32}
FEW = SamplerSettings(steps=4, soft_ratio=0.25, greedy_ratio=0.25)


def tiny_mind(**settings: Any) -> MindGenerator:
    """A MIND with random weights, whose blocks and classes matter (those of a fresh model do not)."""
    torch.manual_seed(0)
    model = Mind(sized("mind-fashion", **TINY)).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return MindGenerator(model, load_tokenizer("ibq"), FEW.model_copy(update=settings))


@pytest.fixture(scope="module")
def generator() -> MindGenerator:
    return tiny_mind()


class Colours:
    """A generator without a network: image i of class k is one colour; it counts its batches and can end in the midst of one."""

    num_classes, batch_size, device, batch_dependent = 3, 4, "cpu", False

    def __init__(self, calls: int = 1000, kill: bool = False) -> None:
        self.calls, self.kill, self.seen = calls, kill, []

    def facts(self) -> Mapping[str, Any]:
        return {"generator": "colours"}

    def draw(self, labels: Tensor, indices: Tensor, seed: int) -> Drawn:
        if len(self.seen) == self.calls:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        self.seen.append(indices.tolist())
        colours = torch.stack([labels, indices, torch.full_like(indices, seed)], 1) / 127.5 - 1
        return Drawn(colours[:, :, None, None].expand(-1, 3, 2, 4), 5.0)


def test_images_are_the_decoded_tokens_of_the_sampler(tmp_path: Path, generator: MindGenerator) -> None:
    labels = [3, 1, 4, 1, 5]
    made = generate(generator, tmp_path / "a folder", n=5, labels=labels, seed=7)
    tokens = sample(generator.model, labels, generator.settings, seed=7).indices
    expected = to_uint8(generator.tokenizer.decode_indices(tokens.view(5, 8, 8))).permute(0, 2, 3, 1).numpy()
    assert len(np.unique(tokens)) > 30  # no collapse onto a few tokens
    assert np.array_equal(made.images.levels(slice(0, 5)), expected) and made.images.labels.tolist() == labels
    assert np.array_equal(sample_images(generator, labels, seed=7, batch_size=2), expected)
    assert made.record["evaluations_per_image"] == sample(generator.model, labels, generator.settings).evaluations


def test_a_sample_is_the_same_in_every_batch(generator: MindGenerator) -> None:
    """In batches of one size, which are filled, to the last bit. Those of another size round otherwise, and guidance this strong
    makes other tokens of it in an image or two, on some processors; were noise shared by a batch, all would differ."""
    strong = tiny_mind(steps=20, cfg_scale=12.0)
    labels = np.arange(12) % 10
    whole = sample_images(strong, labels, batch_size=12)
    assert len(np.unique(whole, axis=0)) == 12
    assert np.array_equal(sample_images(strong, labels, part=slice(3, 8), batch_size=12), whole[3:8])
    for size in (1, 5, 8):
        alike = sample_images(strong, labels, batch_size=size) == whole
        assert alike.reshape(12, -1).all(1).sum() >= 9


def test_batches_do_not_repeat_each_other_where_one_stream_serves_all(tmp_path: Path) -> None:
    generator = tiny_mind(noise="released")
    made = [generate(generator, tmp_path / f"{size}", n=6, batch_size=size, labels=[1] * 6) for size in (6, 3)]
    levels = [one.images.levels(slice(0, 6)) for one in made]
    assert (levels[0][3:] != levels[1][3:]).any() and len(np.unique(levels[1], axis=0)) == 6
    with pytest.raises(UserError, match="batch_size is 3 there, 2 here"):  # a resumed run would differ
        generate(generator, tmp_path / "3", n=6, batch_size=2, labels=[1] * 6)


def test_only_what_is_missing_is_made(tmp_path: Path) -> None:
    whole = generate(Colours(), tmp_path / "whole", n=10, seed=9)
    levels = whole.images.levels(slice(0, 10))
    assert np.array_equal(levels[:, 0, 0], np.stack([whole.images.labels, np.arange(10), np.full(10, 9)], 1))
    with pytest.raises(KeyboardInterrupt):
        generate(Colours(calls=2), tmp_path / "part", n=10, batch_size=2, seed=9)
    rest = Colours()
    again = generate(rest, tmp_path / "part", n=10, batch_size=4, seed=9)
    assert rest.seen == [[4, 5, 6, 7], [8, 9, 9, 9]]  # filled up to four
    assert again.npz.read_bytes() == whole.npz.read_bytes() and again.grid.read_bytes() == whole.grid.read_bytes()
    assert again.record["images"] == 10 and again.record["evaluations_per_image"] == 5
    idle = Colours(calls=0)
    assert generate(idle, tmp_path / "part", n=10, seed=9).record == again.record  # nothing is done twice
    again.npz.write_bytes(again.npz.read_bytes()[:-40])
    assert generate(Colours(), tmp_path / "part", n=10, seed=9).npz.read_bytes() == whole.npz.read_bytes()


def test_kill_loses_one_batch(tmp_path: Path) -> None:
    whole = generate(Colours(), tmp_path / "whole", n=10, seed=9)
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_generate import Colours, generate\n"
        f"generate(Colours(calls=2, kill=True), Path({str(tmp_path / 'killed')!r}), n=10, batch_size=3, seed=9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (tmp_path / "killed" / "parts" / ".images_00000006_00000009.safetensors.77.tmp").write_text("half a part")
    rest = Colours()
    again = generate(rest, tmp_path / "killed", n=10, batch_size=3, seed=9)
    assert rest.seen == [[6, 7, 8, 8], [9, 9, 9, 9]] and again.npz.read_bytes() == whole.npz.read_bytes()
    assert sorted(file.name for file in again.folder.iterdir() if file.name != ".lock") == [
        "grid.png", "samples_10x2x4x3.npz", "settings.json",
    ]  # fmt: skip


def test_without_the_file_the_parts_stay(tmp_path: Path) -> None:
    made = generate(Colours(), tmp_path, n=6, npz=False, png=True)
    assert made.npz is None and len(SampleParts(tmp_path / "parts").found()) == 2
    with Image.open(tmp_path / "png" / "000005.png") as picture:
        assert np.array_equal(np.asarray(picture), made.images.levels(np.array([5]))[0])
    idle = Colours(calls=0)
    assert generate(idle, tmp_path, n=6).npz is not None and not (tmp_path / "parts").exists()


def test_another_request_is_refused(tmp_path: Path, generator: MindGenerator) -> None:
    generate(Colours(), tmp_path / "a", n=6)

    def refused(words: str, **request: Any) -> None:
        with pytest.raises(UserError, match=words):
            generate(Colours(), tmp_path / "a", **{"n": 6, **request})

    refused("another request .n is 6 there, 7 here.", n=7)
    refused("seed is 0 there, 1 here", seed=1)
    refused("labels is equal there, random here", labels="random")
    refused("classes is None there, 0,1 here", classes=[0, 1])
    with pytest.raises(UserError, match="generator is colours there, mind here"):
        generate(generator, tmp_path / "a", n=6)
    generate(generator, tmp_path / "b", n=2)
    with pytest.raises(UserError, match=r"sampler\.top_k is 100 there, 99 here"):
        generate(tiny_mind(top_k=99), tmp_path / "b", n=2)
    (tmp_path / "a" / "settings.json").unlink()
    refused("without the settings.json")
    (tmp_path / "a" / "settings.json").write_text("[]")
    refused("not of a sampling run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        generate(Colours(), tmp_path / "file", n=6)


def test_labels() -> None:
    assert np.bincount(wanted_labels("equal", 30, 10, 0)).tolist() == [3] * 10
    some = wanted_labels("equal", 9, 10, 0, classes=[7, 2, 4])
    assert np.bincount(some, minlength=8).tolist() == [0, 0, 3, 0, 3, 0, 0, 3]
    assert wanted_labels([1, 1, 0], 3, 2, 0).tolist() == [1, 1, 0]
    for wrong, words in (
        (lambda: check_classes([3, 10, -1], 10), "class 10: the model has too few classes, only 0 to 9"),
        (lambda: wanted_labels("equal", 4, 10, 0, classes=[-1]), "class -1"),
        (lambda: wanted_labels("equal", 4, 10, 0, classes=[1, 1]), "named twice"),
        (lambda: wanted_labels([0, 1], 3, 10, 0), "3 images need 3 labels, got 2"),
        (lambda: wanted_labels("equals", 3, 10, 0), "Did you mean equal"),
    ):
        with pytest.raises(UserError, match=words):
            wrong()


@pytest.mark.parametrize(
    ("given", "words"), [({"n": 0}, "n must be at least 1"), ({"batch_size": 0}, "batch size must be")]
)
def test_numbers_below_one(tmp_path: Path, given: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        generate(Colours(), tmp_path, **{"n": 3, **given})


def test_a_tokenizer_that_does_not_fit_is_refused() -> None:
    ibq = load_tokenizer("ibq")
    assert token_grid(sized("mind-fashion", **TINY), ibq) == (8, 8)
    for config, tokenizer, words in (
        (sized("mind-s"), ibq, "has 512 codes, the model a vocabulary of 8192"),
        (sized("mind-fashion", tokens=256, grid=(16, 16)), ibq, "has 8x8 tokens per image, the model 256"),
        (sized("mind-fashion"), load_tokenizer("kl"), "is continuous and has no tokens"),
    ):
        with pytest.raises(UserError, match=words):
            token_grid(config, tokenizer)


def test_weights_from_no_file_are_named_when_somebody_asks() -> None:
    first, second = tiny_mind(), tiny_mind()
    assert first.facts() == second.facts()
    second.model.head.linear.bias[0] += 1
    assert first.facts()["weights_sha256"] != second.facts()["weights_sha256"]


def test_settings_say_everything(tmp_path: Path, generator: MindGenerator) -> None:
    generate(generator, tmp_path, n=2, classes=[1, 2], seed=3)
    kept = json.loads((tmp_path / "settings.json").read_text())
    request = kept["request"]
    assert (request["n"], request["labels"], request["classes"], request["seed"]) == (2, "equal", "1,2", 3)
    assert request["tokenizer"]["release"] == "fashion32" and len(request["tokenizer"]["weights_sha256"]) == 64
    assert SamplerSettings(**request["sampler"]) == generator.settings
    assert request["precision"] == "float32" and len(request["weights_sha256"]) == 64 and request["latentlab"]
    assert kept["record"]["devices"] == ["cpu"] and kept["record"]["seconds_per_image"] > 0
