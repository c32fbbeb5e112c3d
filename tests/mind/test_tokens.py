"""Tokens to train on: the ids the tokenizer gives, mirrored where asked, and one clear line for whatever does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentlab import encoding
from latentlab.data import open_data
from latentlab.errors import UserError
from latentlab.latents import TokenizerSpec
from latentlab.pixels import to_unit_range
from latentlab.store import LatentStore, StoreWriter
from latentlab.tokenizers import load_tokenizer
from latentlab.tokenizers.base import DiscreteTokenizer
from mind.config import MindConfig, sized
from mind.run_config import DataConfig
from mind.tokens import TokenSet, open_tokens, token_set

pytestmark = pytest.mark.usefixtures("own_cache")

CPU = torch.device("cpu")
SPEC = TokenizerSpec("ibq", "fashion32", "vq", "grid", 4, downsampling=4, codebook_size=512)
MODEL = MindConfig(vocab_size=20, tokens=6, grid=(2, 3), num_classes=3)


@pytest.fixture(scope="module")
def ibq() -> DiscreteTokenizer:
    tokenizer = load_tokenizer("ibq", release="fashion32")
    assert isinstance(tokenizer, DiscreteTokenizer)
    return tokenizer


def ids(n: int, top: int = 20) -> Tensor:
    return torch.randint(top, (n, 2, 3), generator=torch.Generator().manual_seed(0))


def write_store(
    path: Path,
    codes: Tensor | None,
    labels: list[int] | None,
    spec: TokenizerSpec = SPEC,
    request: dict[str, Any] | None = None,
    cells: tuple[int, int] = (2, 3),
) -> LatentStore:
    n = len(codes) if codes is not None else len(labels or [])
    writer = StoreWriter(path, request=request or {}, spec=spec)
    writer.append(torch.zeros(n, 4, *cells), None if labels is None else np.array(labels), codes=codes)
    return writer.finish()


def test_images_become_the_ids_of_the_tokenizer(ibq: DiscreteTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(tokenizer="ibq", train="fashion:test", validation="fashion:test", limit=9)
    monkeypatch.setattr(
        "mind.stores.open_data", lambda source, image_size=None, limit=None: open_data(source, limit=limit or 4)
    )
    source = open_tokens(config, sized("mind-fashion"), CPU)
    images = open_data("fashion:test", limit=9)
    pixels = to_unit_range(images.images(np.arange(9)))
    with torch.no_grad():
        wanted = torch.stack([ibq.indices(pixels).flatten(1), ibq.indices(pixels.flip(3)).flatten(1)])
    assert torch.equal(source.train.indices.long(), wanted) and (wanted[0] != wanted[1]).any()
    assert source.train.labels.tolist() == images.labels.tolist()  # type: ignore[union-attr]
    assert source.images is not None and source.images.n == 9
    assert source.validation is not None and source.validation.indices.shape == (1, 4, 64)

    def refuse(*arguments: Any) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(encoding, "encode_batch", refuse)
    assert torch.equal(open_tokens(config, sized("mind-fashion"), CPU).train.indices, source.train.indices)


def test_take_chooses_image_and_side() -> None:
    tokens = TokenSet(torch.arange(12).view(2, 3, 2).to(torch.int16), torch.tensor([5, 6, 7]))
    found, labels = tokens.take(torch.tensor([2, 0, 2]), torch.tensor([False, True, True]))
    assert found.tolist() == [[4, 5], [6, 7], [10, 11]] and labels.tolist() == [7, 5, 7]
    assert found.dtype == torch.int64
    one_side = TokenSet(tokens.indices[:1], tokens.labels)
    assert one_side.take(torch.tensor([2, 0]), torch.tensor([True, True]))[0].tolist() == [[4, 5], [0, 1]]


def test_stores_stand_in_for_images(tmp_path: Path, ibq: DiscreteTokenizer) -> None:
    request = {"weights": encoding.weights_digest(ibq)}
    stores = [write_store(tmp_path / str(i), ids(5) + i, [0, 1, 2, 1, 0], request=request) for i in range(3)]
    paths = {"store": stores[0].path, "mirrored_store": stores[1].path, "validation_store": stores[2].path}
    source = open_tokens(
        DataConfig(tokenizer="ibq", **paths),
        MODEL.model_copy(update={"vocab_size": 22}),
        CPU,  # type: ignore[arg-type]
    )
    assert source.validation is not None and source.images is None
    assert torch.equal(source.train.indices.long(), torch.stack([ids(5), ids(5) + 1]).flatten(2))
    assert torch.equal(source.validation.indices[0].long(), (ids(5) + 2).flatten(1))


@pytest.mark.parametrize(("top", "dtype"), [(32767, torch.int16), (40000, torch.int32)])
def test_ids_are_kept_small_without_losing_any(tmp_path: Path, top: int, dtype: torch.dtype) -> None:
    codes = torch.tensor([[[0, 1, 2], [3, 4, top - 1]]])
    tokens = token_set([write_store(tmp_path, codes, [0])], MODEL.model_copy(update={"vocab_size": top}))
    assert tokens.indices.dtype == dtype and torch.equal(tokens.indices[0].long(), codes.flatten(1))


def store_with(tmp_path: Path, place: tuple[int, int, int], value: int) -> LatentStore:
    codes = ids(4)
    codes[place] = value
    return write_store(tmp_path, codes, [0, 1, 2, 0])


@pytest.mark.parametrize("value", [20, -1])
def test_tokens_outside_the_vocabulary_are_named(tmp_path: Path, value: int) -> None:
    store = store_with(tmp_path, (2, 1, 0), value)
    with pytest.raises(UserError, match=rf"token 3 of image 2 is {value}, outside the model's vocabulary of 20: set"):
        token_set([store], MODEL)


def test_too_few_classes_are_named(tmp_path: Path) -> None:
    store = write_store(tmp_path, ids(4), [0, 1, 3, 0])
    with pytest.raises(UserError, match=r"labels 0 to 3, the model 3 classes \(0 to 2\): set model.num_classes"):
        token_set([store], MODEL)


@pytest.mark.parametrize(
    ("codes", "labels", "cells", "message"),
    [
        (None, [0, 1], (2, 3), "has no codes: MIND learns the ids of a discrete tokenizer"),
        (ids(2), None, (2, 3), "has no labels: MIND is conditioned on classes"),
        (ids(2)[:, :, :2], [0, 1], (2, 2), "has 4 tokens per image, the model 6: set model.tokens"),
    ],
)
def test_stores_that_lack_something_are_named(
    tmp_path: Path, codes: Tensor | None, labels: list[int] | None, cells: tuple[int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        token_set([write_store(tmp_path, codes, labels, cells=cells)], MODEL)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 1, 0]])
def test_a_mirrored_store_of_other_images_is_named(tmp_path: Path, labels: list[int]) -> None:
    first = write_store(tmp_path / "first", ids(4), [0, 1, 2, 0])
    second = write_store(tmp_path / "second", ids(len(labels)), labels)
    with pytest.raises(UserError, match=r"second must hold the images of .*first, mirrored"):
        token_set([first, second], MODEL)


@pytest.mark.parametrize(
    ("spec", "request_", "message"),
    [
        (replace(SPEC, name="open-magvit2", release="imagenet256"), {}, r"made by open-magvit2 \(imagenet256\)"),
        (SPEC, {"weights": "0" * 64}, r"made by ibq \(fashion32\)"),
    ],
)
def test_a_store_of_another_tokenizer_is_named(
    tmp_path: Path, spec: TokenizerSpec, request_: dict[str, str], message: str
) -> None:
    store = write_store(tmp_path, ids(4), [0, 1, 2, 0], spec, request_)
    with pytest.raises(UserError, match=rf"{message}, the configuration names ibq \(fashion32\): set data.tokenizer"):
        open_tokens(DataConfig(tokenizer="ibq", store=store.path), MODEL, CPU)


def test_a_continuous_tokenizer_is_named() -> None:
    with pytest.raises(UserError, match="tokenizer 'kl' is continuous: MIND learns ids"):
        open_tokens(DataConfig(tokenizer="kl", train="fashion:test", limit=2), MODEL, CPU)


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    store = write_store(tmp_path, ids(4), [0, 1, 2, 0])
    (store.path / "store.json").unlink()
    with pytest.raises(UserError, match="does not say which tokenizer made it: encode with latentlab encode"):
        open_tokens(DataConfig(tokenizer="ibq", store=store.path), MODEL, CPU)
