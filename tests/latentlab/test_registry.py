"""`latentlab.measure` and the registry: every input form gives the same number, mistakes are named, imports stay light."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import latentlab
from latentlab import Measurement, TokenizerSpec, UserError
from latentlab.registry import measurement_names
from latentlab.store import StoreWriter

RNG = np.random.default_rng(0)
LATENTS = RNG.normal(size=(60, 4, 3, 5)).astype(np.float32)
LABELS = np.arange(60) % 3
SPEC = TokenizerSpec("toy", "test", "continuous", "grid", channels=4)


@pytest.mark.parametrize("name", ["viv", "lnc", "sec", "linear_probe"])
def test_numpy_torch_and_store_agree(name: str, tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, request={}, spec=SPEC)
    writer.append(torch.from_numpy(LATENTS), LABELS)
    values = [
        latentlab.measure(name, latents=LATENTS, labels=LABELS).value,
        latentlab.measure(name, latents=torch.from_numpy(LATENTS), labels=torch.from_numpy(LABELS)).value,
        latentlab.measure(name, latents=LATENTS.astype(np.float64), labels=LABELS.tolist()).value,
        latentlab.measure(name, store=writer.finish()).value,
    ]
    np.testing.assert_allclose(values, values[0], rtol=2e-6)


@pytest.mark.parametrize("name", ["viv", "lnc", "linear_probe"])
def test_sequences_are_grids_without_their_shape(name: str) -> None:
    tokens = LATENTS.reshape(60, 4, 15).transpose(0, 2, 1)
    flat = latentlab.measure(name, latents=tokens, labels=LABELS)
    grid = latentlab.measure(name, latents=LATENTS, labels=LABELS)
    assert flat.value == pytest.approx(grid.value, rel=1e-6)


@pytest.mark.parametrize("name", ["viv", "lnc", "sec", "linear_probe", "gmm"])
def test_every_measurement_is_complete_and_survives_json(name: str) -> None:
    parameters = {"components": (1, 2)} if name == "gmm" else {}
    m = latentlab.measure(name, latents=LATENTS, labels=LABELS, **parameters)
    card = latentlab.measurements()[name]
    assert (m.name, m.direction) == (name, card.better) and m.unit and m.variant and m.n > 0
    assert m.interval is not None and m.interval[0] <= m.value <= m.interval[1]
    again = Measurement.from_dict(json.loads(m.to_json()))
    assert again.to_dict() == m.to_dict()
    assert set(m.parameters) <= set(again.to_dict()["parameters"])


@pytest.mark.parametrize("name", ["viv", "lnc", "sec"])
def test_order_of_the_images_does_not_matter(name: str) -> None:
    order = np.random.default_rng(1).permutation(60)
    straight = latentlab.measure(name, latents=LATENTS, labels=LABELS).value
    shuffled = latentlab.measure(name, latents=LATENTS[order], labels=LABELS[order]).value
    assert shuffled == pytest.approx(straight, rel=1e-6)


def test_every_card_says_what_a_reader_needs() -> None:
    cards = latentlab.measurements()
    assert list(cards) == measurement_names()
    for name, card in cards.items():
        assert card.name == name
        assert all((card.title, card.summary, card.formula, card.unit, card.range, card.source)), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vivv"}, "unknown measurement 'vivv'. Did you mean viv"),
        ({"name": "viv", "reduse": "sum"}, "unknown parameter of 'viv' 'reduse'. Did you mean reduce"),
        ({"name": "lnc", "labels": None}, "needs labels"),
        ({"name": "sec", "latents": LATENTS.reshape(60, 15, 4)}, "'sec' needs grid"),
        ({"name": "lnc", "labels": [0, 1]}, "labels must have one entry per latent: got 2 for 60 latents"),
        ({"name": "sec", "latents": None}, "give latents .with labels and masks., or store"),
        ({"name": "ifid", "tokenizer": "ibq"}, r"must be a Tokenizer, got str: latentlab.load_tokenizer\('ibq'\)"),
        ({"name": "lnc", "k": 2.5}, "parameter 'k' of 'lnc': Input should be a valid integer.*got 2.5"),
        ({"name": "sec", "rho": "a"}, "parameter 'rho' of 'sec': Input should be a valid number"),
        ({"name": "gmm", "components": 5}, "parameter 'components' of 'gmm'"),
        ({"name": "sec", "seed": -1}, "seed must not be negative, got -1"),
        ({"name": "lnc", "labels": 3}, "got a single number for 60 latents"),
        ({"name": "lnc", "labels": np.full(60, 0.5)}, "labels must be integers"),
        ({"name": "lnc", "masks": np.full((60, 3, 5), np.nan)}, "masks contain NaN"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        latentlab.measure(**{"latents": LATENTS, "labels": LABELS, **arguments})


@pytest.mark.parametrize("name", ["viv", "lnc", "sec", "linear_probe", "gmm"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_latents_are_counted_and_named(name: str, bad: float) -> None:
    spoiled = LATENTS.copy()
    spoiled[[7, 20], 1, 2, 3] = bad
    with pytest.raises(UserError, match=r"2 of 60 latents contain NaN or infinity \(first: image 7\)"):
        latentlab.measure(name, latents=spoiled, labels=LABELS)


def test_views_and_foreign_byte_orders_are_read() -> None:
    expected = latentlab.measure("sec", latents=LATENTS).value
    for same in (LATENTS[::-1], LATENTS.astype(">f4")):
        assert latentlab.measure("sec", latents=same).value == pytest.approx(expected, rel=1e-6)


def test_a_collapsed_latent_space_is_flagged() -> None:
    dead = LATENTS.copy()
    dead[:, 0] = 1.0
    assert any(
        "1 of 4 channels are constant" in w for w in latentlab.measure("viv", latents=dead, labels=LABELS).warnings
    )
    same = np.broadcast_to(LABELS[:, None, None, None], LATENTS.shape).astype(np.float32)
    assert any(
        "3 of 3 classes do not vary" in w for w in latentlab.measure("viv", latents=same, labels=LABELS).warnings
    )


def test_a_store_brings_its_own_labels() -> None:
    store = latentlab.ArrayLatents(LATENTS, labels=LABELS)
    with pytest.raises(UserError, match="belong to the store"):
        latentlab.measure("lnc", store=store, labels=LABELS)


def test_importing_latentlab_does_not_import_torch() -> None:
    script = "import sys, latentlab; print('torch' in sys.modules, 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "False"]


def test_public_names_exist() -> None:
    assert all(getattr(latentlab, name) is not None for name in latentlab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = latentlab.nonsense


def test_forms_a_caller_would_try() -> None:
    """numpy vectors for lists, numpy codebooks, codes alone, vectors [n,c], names of published code."""
    codes, codebook = RNG.integers(0, 7, (20, 3, 3)), RNG.normal(size=(7, 4))
    with_vectors = latentlab.measure("codebook", codes=codes, codebook=codebook)
    latents = codebook[codes].transpose(0, 3, 1, 2)
    assert (
        with_vectors.value == latentlab.measure("codebook", latents, codes=codes, codebook=torch.tensor(codebook)).value
    )
    assert latentlab.measure("codebook", codes=codes[:, 0], vocabulary=7).n == 20
    swept = [latentlab.measure("gmm", LATENTS, components=k, dims=2).value for k in (np.array([1, 2]), [1, 2])]
    assert swept[0] == swept[1]
    few = latentlab.measure("viv", LATENTS, LABELS, num_iters=1).value
    assert few == latentlab.measure("viv", LATENTS, LABELS, iterations=1).value
    points = RNG.normal(size=(50, 2))
    assert latentlab.measure("uniformity", points).value == latentlab.measure("uniformity", points[:, None]).value


def test_class_numbers_are_not_taken_for_masks() -> None:
    """ImageNet-S marks pixels to be ignored with 1000."""
    with pytest.raises(UserError, match="class numbers"):
        latentlab.measure("lnc", LATENTS, LABELS, np.full((60, 3, 5), 1000))
    assert latentlab.measure("lnc", LATENTS, LABELS, np.full((60, 3, 5), 255)).n == 60
