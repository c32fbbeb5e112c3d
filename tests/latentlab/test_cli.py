"""The command line as a user meets it: start time, one-line errors, exit codes, plain output, plug-ins, and whole commands."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from latentlab import LatentStore, UserError, analysis_figures, registry
from latentlab.cli import doctor as doctor_module
from latentlab.cli.main import app
from latentlab.cli.options import as_seen_here, particulars
from latentlab.tokenizers import build_tokenizer, tokenizer_names
from latentlab.tokenizers.zoo import releases_of

TINY = {"ch": 32, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 4, "resolution": 32, "attn_resolutions": ()}


def latentlab(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="latentlab")


def refusal(*arguments: object, code: int = 2) -> str:
    """Run a command that must fail with one line on stderr; return the line."""
    result = latentlab(*arguments)
    assert result.exit_code == code and result.stdout == "", result.output
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "latentlab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with an empty cache, without a network, and with quick figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("LATENTLAB_DEBUG", raising=False)
    monkeypatch.setattr(analysis_figures, "UMAP_POINTS", 10)
    monkeypatch.setattr(analysis_figures, "SHOWN_IMAGES", 2)
    return tmp_path / "home"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny IBQ tokenizer, random and with all that a release records."""
    torch.manual_seed(0)
    architecture = {**TINY, "quantizer": "ibq", "n_embed": 32}
    path = tmp_path_factory.mktemp("some weights") / "tiny.safetensors"
    header = {"architecture": json.dumps(architecture), "name": "ibq", "release": "tiny"}
    save_file(build_tokenizer(architecture).state_dict(), path, metadata=header)
    return path


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Latents as LightningDiT's feature extraction leaves them."""
    folder = tmp_path / "their features"
    folder.mkdir()
    rng = torch.Generator().manual_seed(0)
    tensors = {"latents": torch.randn(60, 4, 4, 4, generator=rng), "labels": torch.arange(60) % 3}
    tensors["latents_flip"] = tensors["latents"].flip(3)
    save_file(tensors, folder / "latents_rank00_shard000.safetensors")
    return folder


# ---- start and failure


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from latentlab.cli.main import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(re.findall(r"'(\w+)", shown.splitlines()[-1]))
    assert "typer" in loaded and not loaded & {"torch", "numpy", "scipy", "pandas", "matplotlib", "pydantic", "rich"}
    for command in ("analyze", "encode", "train", "tokenizers", "doctor"):
        assert re.search(rf"^  {command} ", shown, re.MULTILINE)


@pytest.mark.parametrize("command", [["analyze"], ["encode"], ["train", "tokenizer"], ["tokenizers"], ["doctor"]])
def test_every_command_has_help(command: list[str]) -> None:
    result = latentlab(*command, "--help")
    assert result.exit_code == 0 and "Usage: latentlab" in result.stdout


def test_version() -> None:
    assert re.fullmatch(r"latentlab \d+\.\d+\.\d+\n", latentlab("--version").stdout)


def test_user_error_is_one_line_without_traceback() -> None:
    run = process("analyze", "--tokenizer", "ibk")
    assert run.returncode == 2 and run.stdout == ""
    assert re.fullmatch(r"error: unknown tokenizer 'ibk'\. Did you mean ibq.*Available: .*ibq.*\n", run.stderr)


def test_debug_shows_the_traceback() -> None:
    result = latentlab("--debug", "analyze")
    assert result.exit_code == 2 and "Traceback" in result.stderr and "error: give --tokenizer" in result.stderr
    os.environ.pop("LATENTLAB_DEBUG")


def test_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latentlab.tokenizers.zoo.zoo_entries", interrupt)
    result = latentlab("tokenizers")
    assert result.exit_code == 130 and result.stderr == "interrupted: the same command continues where it stopped\n"


def test_defect_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentlab.tokenizers.zoo.zoo_entries", lambda: 1 / 0)
    result = latentlab("tokenizers")
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    assert result.stderr.startswith("internal error: ZeroDivisionError: division by zero (latentlab --debug")


@pytest.mark.parametrize(
    "command",
    [
        ("encode", "--tokenizer", "kl", "--limit", 8, "--out", "store"),
        ("analyze", "--tokenizer", "kl", "--limit", 8),
        ("compare", "--tokenizers", "kl,ae", "--limit", 8),
    ],
)
def test_a_full_gpu_is_one_line_that_says_what_to_lower(
    command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("latentlab.encoding.encode_batch", full)
    assert "the memory of the GPU does not hold so much at a time: lower --batch-size" in refusal(*command)


def test_reader_that_leaves_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m latentlab tokenizers | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.stdout.strip() in ("0", "1") and run.stderr == ""


# ---- analyze


def test_analysis_of_a_tokenizer(weights: Path, home: Path) -> None:
    command = ("analyze", "--tokenizer", "ibq", "--weights", weights, "--limit", 200, "--metrics", "viv,lnc")
    first = latentlab(*command)
    assert first.exit_code == 0, first.output
    (out,) = Path("runs").glob("analyze-ibq-fashion-test-200-tiny.safetensors-????????")  # which of that name
    for place in ("results.json", "summary.md"):
        assert f"{out / place}" in first.stdout and (out / place).is_file()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", first.output)
    results = json.loads((out / "results.json").read_text())
    assert [m["name"] for m in results["measurements"]] == ["viv", "lnc"]
    assert results["data"]["n"] == 200 and len(results["tokenizer"]["weights_sha256"]) == 64
    assert results["command"] == shlex.join(["latentlab", *sys.argv[1:]])
    assert {Path(f).suffix for f in results["figures"]} == {".png", ".svg"}
    store = LatentStore(results["latents"]["path"])
    assert store.path.parent == home / "stores" and store.has_codes and store.has_masks
    before = {file: file.stat().st_mtime_ns for file in store.path.iterdir()}
    again = latentlab(*command)
    assert "reused, as nothing has changed since the last run: viv, lnc" in again.stderr
    assert {file: file.stat().st_mtime_ns for file in store.path.iterdir()} == before


def test_json_is_all_there_is_on_stdout(features: Path) -> None:
    result = latentlab(
        "analyze", "--latents", features, "--metrics", "viv,sec", "--json", "--out", "my results", "--seed", 3
    )
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown == json.loads(Path("my results/results.json").read_text())
    assert shown["tokenizer"] is None and shown["data"] is None and shown["seed"] == 3
    assert shown["latents"]["n"] == 60 and shown["latents"]["shape"] == [4, 4, 4]
    assert "my results/results.json" in result.stderr


def test_python_gives_the_same_numbers(features: Path) -> None:
    shown = json.loads(latentlab("analyze", "--latents", features, "--metrics", "viv,lnc,sec", "--json").stdout)
    for entry in shown["measurements"]:
        assert registry.measure(entry["name"], store=LatentStore(features)).value == entry["value"]


def test_default_measurements_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "no labels"
    folder.mkdir()
    save_file({"latents": torch.randn(40, 6, 4)}, folder / "latents_rank00_shard000.safetensors")  # [n,l,c]
    result = latentlab("analyze", "--latents", folder, "--metrics", "all")
    assert result.exit_code == 0, result.output
    assert "lnc: not measured: 'lnc' needs labels, and these latents have none\n" in result.stdout
    assert "sec: not measured: 'sec' needs grid" in result.stdout
    refused = json.loads(Path("runs/analyze-no-labels/results.json").read_text())["refused"]
    assert {"viv", "lnc", "linear_probe", "sec"} <= set(refused) and "gmm" not in refused


def test_named_measurement_that_does_not_fit_is_an_error_after_the_others(tmp_path: Path, features: Path) -> None:
    tensors = {"latents": torch.randn(40, 4, 4, 4)}
    save_file(tensors, features / "latents_rank00_shard000.safetensors")
    result = latentlab("analyze", "--latents", features, "--metrics", "lnc,sec")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "error: 1 of 2 measurements were not made; lnc: 'lnc' needs labels, and these latents have none\n"
    )
    assert [
        m["name"] for m in json.loads(Path("runs/analyze-their-features/results.json").read_text())["measurements"]
    ] == ["sec"]


def test_nan_latents_are_counted_and_named(features: Path) -> None:
    latents = torch.zeros(20, 4, 4, 4)
    latents[7, 0, 0, 0] = torch.inf
    save_file({"latents": latents}, features / "latents_rank00_shard000.safetensors")
    assert "1 of 20 latents contain NaN or infinity (first: image 7)" in refusal("analyze", "--latents", features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --tokenizer NAME (see `latentlab tokenizers`) or --latents DIR"),
        (["--tokenizer", "ibq", "--latents", "x"], "give either --tokenizer or --latents, not both"),
        (["--latents", "x", "--data", "fashion"], "--data goes with --tokenizer"),
        (["--latents", "x", "--skip-bad"], "--skip-bad goes with --tokenizer"),
        (["--latents", "missing dir"], "missing dir is not a folder"),
        (["--latents", "empty"], "empty has no latents_rank*_shard*.safetensors files"),
        (["--latents", "x", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["--tokenizer", "ibq", "--limit", "-3"], "--limit must be at least 1, got -3"),
        (["--tokenizer", "ibq", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--tokenizer", "ibq", "--out", "file"], "--out file is a file"),
        (["--tokenizer", "ibq", "--out", "file/below"], "cannot write file/below"),
        (["--tokenizer", "ibq", "--device", "gpu"], "unknown device 'gpu'. Available: auto, cpu"),
        (["--tokenizer", "ibq", "--device", "cuda:99"], "this machine has no device 'cuda:99'. Available: auto, cpu"),
        (["--tokenizer", "ibq", "--metrics", "vib"], "unknown measurement 'vib'. Did you mean viv? Available: "),
        (["--tokenizer", "ibq", "--metrics", ","], "no measurement is named. Available: "),
        (["--tokenizer", "ibq", "--metrics", "lnc", "--set", "lnc.kk=3"], "unknown parameter of 'lnc' 'kk'. Did you mean k?"),
        (["--tokenizer", "ibq", "--set", "lnc.k=many"], "parameter 'k' of 'lnc': "),
        (["--tokenizer", "ibq", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--latents", "x", "--batch-size", "8"], "--batch-size goes with --tokenizer"),
        (["--tokenizer", "ibk"], "unknown tokenizer 'ibk'. Did you mean ibq"),
        (["--tokenizer", "TAEF2"], "unknown tokenizer 'TAEF2'. Did you mean taef2"),
        (["--tokenizer", "VAVAE"], "unknown tokenizer 'VAVAE'. Did you mean vavae or va-vae or ae?"),
        (["--tokenizer", "ibq", "--data", "ImageFolder:x"], "unknown data source 'ImageFolder'. Did you mean imagefolder?"),
        (["--tokenizer", "ibq", "--data", "FASHION:test"], "unknown data source 'FASHION'. Did you mean fashion?"),
        (["--tokenizer", "ibq", "--release", "fashion23"], "unknown release of tokenizer 'ibq' 'fashion23'. Did you mean"),
        (["--tokenizer", "ibq", "--data", "fashoin"], "unknown data source 'fashoin'. Did you mean fashion? Available: "),
        (["--tokenizer", "ibq", "--data", "fashion:tset"], "unknown split of fashion 'tset'. Did you mean test? Available: "),
        (["--tokenizer", "ibq", "--data", "imagefolder:no such"], "no such does not exist"),
        (["--tokenizer", "ibq", "--data", "empty"], "empty is a folder: write imagefolder:empty"),
        (["--tokenizer", "ibq", "--weights", "no.pt"], "no.pt"),
    ],
)  # fmt: skip
def test_bad_arguments_of_analyze(arguments: list[str], message: str, weights: Path) -> None:
    Path("file").touch()
    Path("empty").mkdir()
    if "ibq" in arguments and not {"--weights", "--release"} & set(arguments):
        arguments = [*arguments, "--weights", str(weights)]
    assert message in refusal("analyze", *arguments)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizers", "ae,kl", "--metrics", "lnc", "--set", "lnc.kk=3"], "unknown parameter of 'lnc' 'kk'"),
        (["--tokenizers", "ae,kl", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--latents", "x,y", "--batch-size", "8"], "--batch-size goes with --tokenizers"),
    ],
)
def test_bad_arguments_of_compare(arguments: list[str], message: str, home: Path) -> None:
    assert message in refusal("compare", *arguments)
    assert not Path("runs").exists() and not home.exists()


def test_default_folders_of_plain_cases_are_named_plainly(tmp_path: Path) -> None:
    assert particulars("ibq", "fashion:test", 4000, None, "ch=64") == ["ibq", "fashion-test", "4000", "ch-64"]
    assert particulars(as_seen_here(tmp_path / "latents"), masks=None, image_size=64, seed=2) == [
        "latents",
        "64px",
        "seed2",
    ]
    one, other = (particulars(as_seen_here(Path(folder) / "run"))[0] for folder in ("a", "../a"))
    assert one != other and {one[:4], other[:4]} == {"run-"}
    assert as_seen_here(Path("a/../run")) == Path("run") and as_seen_here(Path()) == tmp_path


def test_default_folders_differ_where_anything_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other images of folders with one name, other sizes, other seeds; and latents in such folders."""
    from PIL import Image

    monkeypatch.setattr("latentlab.analyze.draw_figures", lambda *_, **__: ([], []))
    rng = np.random.default_rng(0)
    for folder in ("a/val", "b/val"):
        Path(folder).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(f"{folder}/{number}.png")
    images = ("analyze", "--tokenizer", "ae", "--metrics", "latent_statistics", "--image-size", 32, "--data")
    commands = [
        (*images, "imagefolder:a/val"),
        (*images, "imagefolder:b/val"),
        (*images[:-2], 16, "--data", "imagefolder:b/val"),
        (*images, "imagefolder:b/val", "--seed", 3),
    ]
    for folder in ("a", "b"):
        encode = ("encode", "--tokenizer", "ae", "--data", f"imagefolder:{folder}/val", "--image-size", 32)
        assert latentlab(*encode, "--out", f"{folder}/latents").exit_code == 0
        commands.append(("analyze", "--latents", f"{folder}/latents", "--metrics", "latent_statistics"))
    told = [re.findall(r"^results  (.*)$", latentlab(*command).stdout, re.MULTILINE) for command in commands]
    assert len({name for (name,) in told}) == len(commands)
    assert told[3][0].endswith("-32px-seed3/results.json")


def test_batches_are_as_large_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentlab import encoding

    sizes: set[int] = set()
    encode = encoding.encode_batch

    def counted(tokenizer: torch.nn.Module, images: torch.Tensor, *more: object) -> object:
        sizes.add(len(images))
        return encode(tokenizer, images, *more)

    monkeypatch.setattr("latentlab.encoding.encode_batch", counted)
    monkeypatch.setattr("latentlab.codec.encode_batch", counted)
    options = ("--limit", 10, "--batch-size", 4, "--metrics", "equivariance", "--device", "cpu")
    assert latentlab("analyze", "--tokenizer", "ae", *options).exit_code == 0
    assert max(sizes) == 4


def test_weights_that_are_not_here(home: Path) -> None:
    Path("images/class").mkdir(parents=True)
    line = refusal("analyze", "--tokenizer", "mar-kl16", "--data", "imagefolder:images")
    assert "kl16.safetensors" in line and "huggingface.co/jadechoghari/mar" in line and str(home / "weights") in line


def test_latents_are_kept_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("analyze", "--tokenizer", "ibq", "--limit", 30, "--metrics", "sec")  # the embedded weights

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("latentlab.analyze.measure_all", interrupt)
        result = latentlab(*command)
        assert result.exit_code == 130 and "continues where it stopped" in result.stderr
    monkeypatch.setattr("latentlab.encoding.encode_batch", interrupt)  # must not be needed again
    assert latentlab(*command).exit_code == 0


# ---- encode


def test_encode_writes_a_store_that_analyze_reads(weights: Path) -> None:
    result = latentlab(
        "encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 40, "--out", "my store", "--dtype", "float16"
    )
    assert result.exit_code == 0 and result.stdout == "latents  40 of 4 x 8 x 8 in my store\n", result.output
    store = LatentStore("my store")
    assert store.n == 40 and store.spec.name == "ibq" and store.spec.release == "tiny" and store.has_codes
    assert np.bincount(store.labels).tolist() == [4] * 10
    analysed = latentlab("analyze", "--latents", "my store", "--metrics", "sec", "--json")
    assert json.loads(analysed.stdout)["tokenizer"]["codebook_size"] == 32
    named = latentlab("analyze", "--latents", "my store", "--metrics", "sec", "--limit", 20, "--json")
    assert json.loads(named.stdout)["latents"]["n"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--out", "file"], "--out file is a file"),
        (["--data", "cifar10"], "the data source 'cifar10' needs a folder: write cifar10:DIR"),
        (["--image-size", "64"], "fashion images are 32x32"),
    ],
)
def test_bad_arguments_of_encode(arguments: list[str], message: str, weights: Path) -> None:
    Path("file").touch()
    assert message in refusal("encode", "--tokenizer", "ibq", "--weights", weights, "--out", "out", *arguments)
    assert not Path("out").exists()


def test_finished_latents_of_another_request_are_not_overwritten(weights: Path) -> None:
    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 10, "--out", "store")
    assert latentlab(*command).stdout == "latents  10 of 4 x 8 x 8 in store\n"
    shard = next(Path("store").glob("*.safetensors"))
    written = shard.stat().st_mtime_ns
    again = "reused   10 of 4 x 8 x 8 in store: finished before, and nothing has changed since\n"
    assert latentlab(*command).stdout == again and shard.stat().st_mtime_ns == written
    line = refusal(*command, "--dtype", "float16")
    assert "store holds finished latents of another request (dtype is float32 there, float16 here)" in line
    assert LatentStore("store").n == 10


def test_unfinished_latents_of_another_request_are_not_overwritten(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentlab import encoding, store_writer

    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 40, "--batch-size", 4, "--out", "store")
    columns = encoding.BatchEncoder.columns

    def interrupted(self: encoding.BatchEncoder, pixels: torch.Tensor, first: int) -> object:
        if first >= 32:
            raise KeyboardInterrupt
        return columns(self, pixels, first)

    monkeypatch.setattr(store_writer, "SHARD_IMAGES", 8)
    with monkeypatch.context() as stopping:
        stopping.setattr(encoding.BatchEncoder, "columns", interrupted)
        assert latentlab(*command).exit_code == 130
    kept = {shard: shard.stat().st_ino for shard in Path("store").glob("latents*")}
    assert kept
    line = refusal(*command, "--dtype", "float16")
    assert "store holds unfinished latents of another request (dtype is float32 there, float16 here)" in line
    assert latentlab(*command).stdout == "latents  40 of 4 x 8 x 8 in store\n"
    assert {shard: shard.stat().st_ino for shard in kept} == kept


def test_latents_of_a_newer_version_are_not_overwritten(weights: Path) -> None:
    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 10, "--out", "store")
    assert latentlab(*command).exit_code == 0
    Path("store/store.json").write_text('{"format_version": 2, "parts": []}')
    shards = {shard: shard.read_bytes() for shard in Path("store").glob("latents*")}
    line = refusal(*command)
    assert "store has store format 2, this latentlab reads 1" in line and "choose another --out" in line
    assert shards and {shard: shard.read_bytes() for shard in shards} == shards


def test_masks_are_named_as_what_differs(weights: Path) -> None:
    from PIL import Image

    for folder in ("images/a", "masks/a"):
        Path(folder).mkdir(parents=True)
        Image.fromarray(np.full((32, 32), 255, np.uint8)).convert("RGB").save(f"{folder}/0.png")
    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--data", "imagefolder:images", "--image-size", 32)
    assert latentlab(*command, "--out", "store").exit_code == 0
    line = refusal(*command, "--out", "store", "--masks", "binary:masks")
    assert "another request (without --masks there, with here)" in line


def test_fields_of_the_architecture_are_given_on_the_command_line(tmp_path: Path) -> None:
    fields = {**(releases_of("mar-kl16")[0].architecture or {}), "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}
    save_file(build_tokenizer(fields).state_dict(), tmp_path / "mine.safetensors")
    command = ("--tokenizer", "mar-kl16", "--weights", "mine.safetensors", "--limit", 4)
    options = ("--architecture", "ch=32", "--architecture", "ch_mult=[1, 1]", "--architecture", "num_res_blocks=1")
    assert "the fields of architecture that differ (--architecture FIELD=VALUE)" in refusal(
        "encode", *command, "--out", "a"
    )
    encoded = latentlab("encode", *command, *options, "--out", "a")
    assert encoded.exit_code == 0 and "4 of 16 x 16 x 16 in a" in encoded.stdout, encoded.output
    analysed = latentlab("analyze", *command, *options, "--metrics", "sec", "--out", "b", "--json")
    assert json.loads(analysed.stdout)["latents"]["shape"] == [16, 16, 16], analysed.output
    assert "--architecture expects FIELD=VALUE, got 'ch'" in refusal(
        "encode", *command, "--architecture", "ch", "--out", "c"
    )
    assert "--architecture goes with --tokenizer" in refusal("analyze", "--latents", "a", *options)


def test_weights_of_a_tokenizer_that_has_no_published_ones_name_the_one_that_has(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "mine.safetensors")
    line = refusal("encode", "--tokenizer", "vavae", "--weights", "mine.safetensors", "--out", "a")
    assert "'vavae' has no published one: did you mean va-vae?" in line


def test_encode_says_as_json_what_is_there_and_whether_it_was_there_before(weights: Path) -> None:
    command = (
        "encode",
        "--tokenizer",
        "ibq",
        "--weights",
        weights,
        "--limit",
        10,
        "--out",
        "store",
        "--flip",
        "--json",
    )
    first, second = (json.loads(latentlab(*command).stdout) for _ in range(2))
    assert (first.pop("reused"), second.pop("reused")) == (False, True) and first == second
    assert first.pop("tokenizer")["release"] == "tiny"
    assert first == {"path": "store", "n": 10, "shape": [4, 8, 8], "mirrored": True, "skipped_images": []}


def test_foreign_latents_are_not_overwritten(weights: Path, features: Path) -> None:
    line = refusal("encode", "--tokenizer", "ibq", "--weights", weights, "--limit", 5, "--out", features)
    assert "holds latents that latentlab did not write" in line
    assert LatentStore(features).n == 60


def test_corrupt_images_are_refused_or_skipped_and_counted(weights: Path) -> None:
    from PIL import Image

    Path("images/a b").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(f"images/a b/{i}.png")
    Path("images/a b/broken.png").write_bytes(b"\x89PNG nonsense")
    command = ("encode", "--tokenizer", "ibq", "--weights", weights, "--data", "imagefolder:images", "--image-size", 32)
    assert "broken.png" in refusal(*command, "--out", "out")
    result = latentlab(*command, "--out", "out", "--skip-bad")
    assert result.exit_code == 0 and "skipped  1 unreadable images" in result.stdout and "broken.png" in result.stdout
    assert LatentStore("out").n == 3
    unknown = latentlab(*command, "--out", "out", "--skip-bad", "--dtype", "int8")
    assert unknown.exit_code == 2 and "'float32', 'float16', 'bfloat16'" in unknown.stderr


# ---- tokenizers, doctor, train


def test_tokenizers_are_listed_with_their_weights() -> None:
    listed = json.loads(latentlab("tokenizers", "--json").stdout)
    assert [*dict.fromkeys(entry["name"] for entry in listed)] == tokenizer_names()
    mar = next(entry for entry in listed if entry["name"] == "mar-kl16")
    assert mar["latent_shape"] == [16, 16, 16] and mar["licence"] == "MIT"
    assert mar["weights_present"] is False and mar["weights_path"] is None
    assert mar["size_bytes"] == 265_856_244 and mar["origin"] == "huggingface.co/jadechoghari/mar"
    table = latentlab("tokenizers").stdout
    row = next(line for line in table.splitlines() if "mar-kl16" in line)
    assert all(part in row for part in ("imagenet256", "kl", "16 x 16 x 16 (256)", "265.9 MB", "MIT", "not here"))
    assert "`latentlab fetch NAME --release RELEASE`" in table


def test_doctor_reports_in_words_and_as_json() -> None:
    report = latentlab("doctor")
    shown = json.loads(latentlab("doctor", "--json").stdout)
    assert report.exit_code == 0 and shown["healthy"] and report.stdout.endswith("the basics work\n")
    checks = {check["name"]: check for check in shown["checks"]}
    assert checks["data fashion:test"] == {
        "name": "data fashion:test", "status": "ok", "detail": "10,000 images of 32x32"
    }  # fmt: skip
    assert "torch" in checks["libraries"]["detail"] and checks["devices"]["detail"].startswith("cpu")
    assert checks["weights mar-kl16/imagenet256"]["status"] == "note"
    assert checks["offline"]["detail"].startswith(
        "analyze, compare and encode with --data fashion, train with a shipped"
    )
    for check in shown["checks"]:
        assert f"{check['status']:<4}  {check['name']} " in report.stdout


def test_doctor_names_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(split: str) -> str:
        raise UserError(f"{split} is damaged: install latentlab again")

    monkeypatch.setattr(doctor_module, "_embedded_data", missing)
    result = latentlab("doctor")
    assert result.exit_code == 1 and "bad   data fashion:test" in result.stdout
    assert "the basics do not work" in result.stdout


def test_train_writes_weights_that_load() -> None:
    settings = [
        "optimiser.steps=2",
        "optimiser.batch_size=4",
        "validation_images=8",
        "data.limit=16",
        "loss.perceptual=0",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    result = latentlab("train", "tokenizer", "--config", "ae", *options, "--out", "a run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    path = Path(re.search(r"^weights +(.*)$", result.stdout, re.MULTILINE)[1])
    encoded = latentlab("encode", "--tokenizer", "ae", "--weights", path, "--limit", 4, "--out", "store")
    assert encoded.exit_code == 0, encoded.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no such.yaml"], "there is no tokenizer configuration no such.yaml"),
        (["--config", "ibk"], "unknown tokenizer configuration 'ibk'. Did you mean ibq"),
        (["--config", "ae", "--set", "optimiser.stepz=2"], "stepz"),
        (["--config", "ae", "--set", "nonsense"], "--set expects KEY=VALUE"),
        (["--config", "ae", "--device", "tpu"], "unknown device 'tpu'"),
        (["--config", "ae", "--out", "file"], "--out file is a file"),
    ],
)
def test_bad_arguments_of_train(arguments: list[str], message: str) -> None:
    Path("file").touch()
    assert message in refusal("train", "tokenizer", *arguments)


# ---- plug-ins


def test_plugin_brings_a_tokenizer_and_a_measurement(installed_example: tuple[Path, Path]) -> None:
    path = os.pathsep.join([*map(str, installed_example), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = process(
        "analyze", "--tokenizer", "pixel-patches", "--metrics", "channel_correlation,sec", "--limit", "12", "--json",
        PYTHONPATH=path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert results["tokenizer"]["name"] == "pixel-patches"
    correlation, sec = results["measurements"]
    assert correlation["name"] == "channel_correlation" and sec["name"] == "sec"
    pixels = LatentStore(results["latents"]["path"]).take(slice(None)).double()
    table = np.abs(np.corrcoef(pixels.transpose(0, 1).flatten(1).numpy()))
    c = len(table)
    assert correlation["value"] == pytest.approx((np.nansum(table) - c) / (c * (c - 1)), rel=1e-6)
