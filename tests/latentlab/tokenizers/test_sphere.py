"""The latent space of MIND files with random embeddings, on the embedded IBQ tokenizer and on others; truths are loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentlab import UserError, load_tokenizer, open_data
from latentlab.analyze import analyze, subject_of_tokenizer
from latentlab.encoding import encode_batch, weights_digest
from latentlab.latents import TokenizerSpec
from latentlab.pixels import to_unit_range
from latentlab.tokenizers import DiscreteTokenizer, Tokenizer, build_tokenizer, zoo, zoo_entries
from latentlab.tokenizers.sphere import SphereTokenizer, load_sphere
from mind import Mind, load_mind, save_mind, sized
from mind.config import MindConfig
from mind.weight_files import embedded_path

SMALL = {"hidden_size": 16, "num_heads": 2, "num_blocks": 1, "cond_dim": 8, "mapper_width": 8, "use_residual": False}


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def ibq() -> Tokenizer:
    return load_tokenizer("ibq", release="fashion32")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return to_unit_range(open_data("fashion:test", limit=6).images(np.arange(6)))


def record(tokenizer: Tokenizer, **changes: Any) -> dict[str, str]:
    spec = tokenizer.spec
    named = {"name": spec.name, "release": spec.release, "weights_sha256": weights_digest(tokenizer)}
    return {"tokenizer": json.dumps({**named, **changes})}


def write(
    path: Path,
    header: dict[str, str],
    seed: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Path:
    """A MIND file whose embeddings are random; the rest of the network is as small as can be."""
    config: MindConfig = sized("mind-fashion", **{**SMALL, **fields})
    torch.manual_seed(seed)
    state = Mind(config).state_dict()
    state["table.embedding"] = scale * torch.randn(config.vocab_size, config.embed_dim)
    save_mind(path, {name: tensor.to(dtype) for name, tensor in state.items()}, config, header)
    return path


def make(tmp_path: Path, ibq: Tokenizer, **options: Any) -> SphereTokenizer:
    tokenizer = load_tokenizer("mind", weights=write(tmp_path / "m.safetensors", record(ibq), **options))
    assert isinstance(tokenizer, SphereTokenizer)
    return tokenizer


# --- what it is -------------------------------------------------------------------------------------------------------


def test_latents_are_the_embeddings_of_the_base_tokenizers_ids(tmp_path: Path, ibq: Tokenizer, images: Tensor) -> None:
    tokenizer = make(tmp_path, ibq)
    ids = ibq.indices(images)  # type: ignore[operator]
    assert torch.equal(tokenizer.indices(images), ids)
    latents = tokenizer.encode(images)
    assert latents.shape == (6, 16, 8, 8)
    embed = load_mind(tmp_path / "m.safetensors").embed(ids)  # [n,h,w,d]
    torch.testing.assert_close(latents, embed.movedim(-1, 1))
    torch.testing.assert_close(latents[2, :, 3, 5], tokenizer.codebook[ids[2, 3, 5]])
    norms = latents.unflatten(1, (4, 4)).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-4)


def test_decoding_gives_the_base_tokenizers_images(tmp_path: Path, ibq: Tokenizer, images: Tensor) -> None:
    tokenizer, expected = make(tmp_path, ibq), ibq.decode(ibq.encode(images))
    assert torch.equal(tokenizer.decode(tokenizer.encode(images)), expected)
    assert torch.equal(tokenizer.decode_indices(tokenizer.indices(images)), expected)
    latents, codes = encode_batch(tokenizer, images)
    assert codes is not None
    assert torch.equal(tokenizer.decode(latents), tokenizer.decode_indices(codes))


@pytest.mark.parametrize("options", [{}, {"scale": 1e-3}, {"dtype": torch.float16}, {"normalise": False}])
def test_every_code_is_nearest_to_itself(tmp_path: Path, ibq: Tokenizer, options: dict[str, Any]) -> None:
    tokenizer = make(tmp_path, ibq, **options)
    ids = torch.arange(512).view(2, 16, 16)
    assert torch.equal(tokenizer.nearest(tokenizer.codes(ids)), ids)


@pytest.mark.parametrize("normalise", [True, False])
def test_nearest_against_a_search_in_numpy(tmp_path: Path, ibq: Tokenizer, normalise: bool) -> None:
    """By angle on the spheres; by distance off them, where long codes would win every dot product."""
    tokenizer = make(tmp_path, ibq, normalise=normalise)
    latents = 0.7 * torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(4))
    table = tokenizer.codebook.double().numpy()
    found = tokenizer.nearest(latents)
    by_dot = np.einsum("nchw,vc->nhwv", latents.double().numpy(), table).argmax(-1)
    difference = latents.double().numpy()[:, None] - table[None, :, :, None, None]
    by_distance = (difference**2).sum(2).argmin(1)
    np.testing.assert_array_equal(found.numpy(), by_distance)
    assert bool((by_dot == by_distance).all()) == normalise


def test_without_spheres_codes_are_the_raw_rows(tmp_path: Path, ibq: Tokenizer) -> None:
    tokenizer = make(tmp_path, ibq, normalise=False)
    torch.testing.assert_close(tokenizer.codebook, load_mind(tmp_path / "m.safetensors").table.embedding)
    assert float(tokenizer.codebook.norm(dim=1).std()) > 0.3


def test_specification(tmp_path: Path, ibq: Tokenizer) -> None:
    tokenizer = make(tmp_path, ibq)
    spec = tokenizer.spec
    assert (spec.name, spec.release, spec.kind, spec.layout) == ("mind", "custom", "vq", "grid")
    assert (spec.channels, spec.downsampling, spec.codebook_size) == (16, 4, 512)
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    other = load_tokenizer("mind", weights=write(tmp_path / "o.safetensors", record(ibq) | {"release": "mine"}, seed=1))
    assert other.spec.release == "mine"
    assert len({weights_digest(t) for t in (tokenizer, other, ibq)}) == 3


# --- other tokenizers underneath --------------------------------------------------------------------------------------


class Strip(DiscreteTokenizer):
    """A 1-D tokenizer: the mean brightness of each of 6 strips in 10 steps."""

    spec = TokenizerSpec("strip", "v1", "vq", "sequence", channels=1, codebook_size=10)
    codebook = torch.linspace(-1, 1, 10)[:, None]  # type: ignore[assignment]

    def indices(self, images: Tensor) -> Tensor:
        means = torch.stack([part.mean((1, 2, 3)) for part in images.chunk(6, dim=2)], dim=1)
        return ((means + 1) / 2 * 9).round().long()

    def codes(self, indices: Tensor) -> Tensor:
        return self.codebook[indices]

    def encode(self, images: Tensor, sample: bool = False, generator: Any = None) -> Tensor:
        return self.codes(self.indices(images))

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(4, 1)[:, None].expand(-1, 3, -1, 24)


def test_tokens_in_a_sequence(tmp_path: Path) -> None:
    base = Strip()
    path = write(tmp_path / "m.safetensors", record(base), vocab_size=10, tokens=6, grid=None, rope="1d")
    tokenizer = load_sphere(path, lambda name, **_: base, {})
    pictures = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = tokenizer.encode(pictures)
    assert latents.shape == (3, 6, 16) and tokenizer.spec.layout == "sequence" and tokenizer.spec.downsampling is None
    ids = base.indices(pictures)
    assert torch.equal(tokenizer.nearest(latents), ids)
    for image in range(3):
        for place in range(6):
            torch.testing.assert_close(latents[image, place], tokenizer.codebook[ids[image, place]])
    assert torch.equal(tokenizer.decode(latents), base.decode_indices(ids))
    with pytest.raises(UserError, match=r"latents must be \[n,l,16\], got shape \[3, 16, 6\]"):
        tokenizer.decode(latents.transpose(1, 2))
    with pytest.raises(UserError, match=r"indices must be integers \[n,l\]"):
        tokenizer.codes(torch.zeros(1, 2, 3, dtype=torch.int64))


def own_base(path: Path, codes: int = 9) -> Tokenizer:
    """A tokenizer trained by the user, in a file of its own."""
    architecture = {
        "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "resolution": 16, "z_channels": 4,
        "quantizer": "ibq", "n_embed": codes,
    }  # fmt: skip
    torch.manual_seed(0)
    header = {"architecture": json.dumps(architecture), "name": "mine", "release": "run1"}
    save_file(build_tokenizer(architecture).state_dict(), path, metadata=header)
    return load_tokenizer("mine", weights=path)


def test_a_base_tokenizer_in_a_file_of_its_own(tmp_path: Path) -> None:
    base = own_base(tmp_path / "base.safetensors")
    path = write(tmp_path / "m.safetensors", record(base), vocab_size=9)
    tokenizer = load_tokenizer("mind", weights=path, architecture={"base_weights": tmp_path / "base.safetensors"})
    pictures = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(tokenizer.decode(tokenizer.encode(pictures)), base.decode(base.encode(pictures)))
    with pytest.raises(UserError, match="unknown tokenizer 'mine'"):
        load_tokenizer("mind", weights=path)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights_sha256": "0" * 64},
            r"m\.safetensors was trained on tokens of 'ibq' fashion32 \(SHA-256 0+\), not of",
        ),
        ({"release": "fashion64"}, r"unknown release of tokenizer 'ibq' 'fashion64'\. Did you mean fashion32"),
        ({"name": "ae"}, r"names the tokenizer 'ae', which has no tokens"),
        ({"name": "ibk"}, r"unknown tokenizer 'ibk'\. Did you mean ibq"),
    ],
)
def test_another_base_tokenizer(tmp_path: Path, ibq: Tokenizer, changes: dict[str, str], message: str) -> None:
    path = write(tmp_path / "m.safetensors", record(ibq, **changes))
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer("mind", weights=path)
    assert "\n" not in str(caught.value)


def test_the_hash_of_the_base_counts_not_what_its_release_was_called(tmp_path: Path) -> None:
    """A file without a release goes by another name when somebody gives it one."""
    base = own_base(tmp_path / "base.safetensors")
    path = write(tmp_path / "m.safetensors", record(base, release="imagenet256"), vocab_size=9)
    file = {"base_weights": tmp_path / "base.safetensors"}
    assert load_tokenizer("mind", weights=path, architecture=file).spec.codebook_size == 9
    unsigned = write(tmp_path / "n.safetensors", record(base, release="other", weights_sha256=None), vocab_size=9)
    with pytest.raises(UserError, match="trained on tokens of 'mine' other"):
        load_tokenizer("mind", weights=unsigned, architecture=file)


def test_the_wrong_file_as_base_weights(tmp_path: Path) -> None:
    right, _ = own_base(tmp_path / "right.safetensors"), own_base(tmp_path / "wrong.safetensors", codes=8)
    path = write(tmp_path / "m.safetensors", record(right), vocab_size=9)
    with pytest.raises(UserError, match=r"trained on tokens of 'mine' run1 .* not of run1 .*'base_weights': PATH"):
        load_tokenizer("mind", weights=path, architecture={"base_weights": tmp_path / "wrong.safetensors"})


def test_another_number_of_tokens(tmp_path: Path, ibq: Tokenizer) -> None:
    path = write(tmp_path / "m.safetensors", record(ibq), vocab_size=500)
    with pytest.raises(UserError, match=r"m\.safetensors has 500 tokens, but its tokenizer 'ibq' has 512"):
        load_tokenizer("mind", weights=path)


def test_files_that_cannot_be_used(tmp_path: Path, ibq: Tokenizer) -> None:
    write(tmp_path / "m.safetensors", {})
    with pytest.raises(UserError, match=r"does not say which tokenizer made its tokens"):
        load_tokenizer("mind", weights=tmp_path / "m.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="holds no MIND weights written by latentlab"):
        load_tokenizer("mind", weights=tmp_path / "other.safetensors")
    header = {"mind_config": sized("mind-fashion").model_dump_json(), **record(ibq)}
    save_file({"table.embedding": torch.zeros(512, 8)}, tmp_path / "cut.safetensors", metadata=header)
    with pytest.raises(UserError, match=r"cut\.safetensors has no table\.embedding of shape \[512, 16\]"):
        load_tokenizer("mind", weights=tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"holds the tokenizer 'ibq', not 'mind'"):
        load_tokenizer("mind", weights=zoo.embedded_path("ibq", "fashion32"))


def test_an_unknown_architecture_field(tmp_path: Path, ibq: Tokenizer) -> None:
    path = write(tmp_path / "m.safetensors", record(ibq))
    with pytest.raises(UserError, match=r"architecture field of tokenizer 'mind' 'ch'.*Available: base_weights"):
        load_tokenizer("mind", weights=path, architecture={"ch": 3})


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.zeros(1, 8, 8), r"integers \[n,h,w\], got torch\.float32"),
        (torch.zeros(8, 8, dtype=torch.int64), r"got torch\.int64 \[8, 8\]"),
        (torch.full((1, 8, 8), 512), r"must lie in 0\.\.511, got 512\.\.512"),
        (torch.full((1, 8, 8), -1), r"must lie in 0\.\.511, got -1\.\.-1"),
    ],
)
def test_wrong_indices(tmp_path: Path, ibq: Tokenizer, indices: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(tmp_path, ibq).codes(indices)


def test_wrong_latents(tmp_path: Path, ibq: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"latents must be \[n,16,h,w\], got shape \[1, 4, 8, 8\]"):
        make(tmp_path, ibq).decode(torch.zeros(1, 4, 8, 8))


# --- in the suite -----------------------------------------------------------------------------------------------------


def test_it_is_analysed_like_any_other(tmp_path: Path, ibq: Tokenizer) -> None:
    tokenizer, images = make(tmp_path, ibq), open_data("fashion:test", limit=40)
    subject = subject_of_tokenizer(tokenizer, images)
    wanted = ["codebook", "latent_statistics", "lds"]
    results = analyze(subject, tmp_path / "run", metrics=wanted, draw=False)
    measured = {m.name: m for m in results.measurements}
    assert list(measured) == wanted and not results.refused
    assert measured["latent_statistics"].value == pytest.approx(2, abs=1e-3)  # norm of a token: 4 sub-vectors of norm 1
    table = tokenizer.codebook.double().numpy()
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = unit @ unit.T - 2 * np.eye(512)
    nearest = np.rad2deg(np.arccos(cosines.max(1)))
    companions = measured["codebook"].companions
    assert companions["mean_nearest_angle_degrees"].value == pytest.approx(nearest.mean(), rel=1e-6)
    assert companions["least_nearest_angle_degrees"].value == pytest.approx(nearest.min(), rel=1e-6)
    assert torch.equal(subject.latents.codes(slice(0, 40)), ibq.indices(to_unit_range(images.images(np.arange(40)))))  # type: ignore[operator]


@pytest.fixture
def shipped(tmp_path: Path, ibq: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the package came with weights."""
    monkeypatch.setattr("mind.weight_files.WEIGHTS", tmp_path / "weights")
    return write(tmp_path / "weights" / "mind_fashion32.safetensors", record(ibq) | {"release": "fashion32"})


def test_the_list_of_tokenizers_describes_it(shipped: Path) -> None:
    (entry,) = [entry for entry in zoo_entries() if entry.name == "mind"]
    assert (entry.release, entry.kind, entry.latent_shape, entry.codebook_size) == ("fashion32", "vq", (16, 8, 8), 512)
    assert (entry.image_size, entry.path, entry.source) == (32, shipped, None)


@pytest.mark.parametrize("release", [None, "fashion32"])
def test_embedded_weights_are_found_by_name(shipped: Path, images: Tensor, release: str | None) -> None:
    tokenizer = load_tokenizer("mind", release=release)
    assert (tokenizer.spec.name, tokenizer.spec.release) == ("mind", "fashion32")
    assert tokenizer.encode(images).shape == (6, 16, 8, 8)


def test_lacking_embedded_weights_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mind.weight_files.WEIGHTS", tmp_path)
    (entry,) = [entry for entry in zoo_entries() if entry.name == "mind"]
    assert not entry.present
    with pytest.raises(
        UserError, match=r"embedded weights .*mind_fashion32\.safetensors are missing: install latentlab"
    ):
        load_tokenizer("mind")


def test_the_weights_that_ship() -> None:
    if not embedded_path("fashion32").is_file():
        pytest.skip(f"{embedded_path('fashion32')} is not there: it is made by training, see mind/configs")
    tokenizer = load_tokenizer("mind")
    assert tokenizer.spec.release == "fashion32" and isinstance(tokenizer, SphereTokenizer)
    norms = tokenizer.codebook.unflatten(1, (4, 4)).norm(dim=2)
    torch.testing.assert_close(norms, torch.ones(512, 4), rtol=0, atol=0.01)
    ids = torch.arange(512).view(8, 8, 8)
    assert torch.equal(tokenizer.nearest(tokenizer.codes(ids)), ids)
