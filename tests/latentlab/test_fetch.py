"""Published weights: found, downloaded from a real local server, verified; and the command that does it."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from latentlab.cli.main import app
from latentlab.errors import UserError
from latentlab.tokenizers.release import Release
from latentlab.tokenizers.zoo import ZOO
from latentlab.weights import WeightFile, download_weights, find_weights

CONTENT = bytes(range(256)) * 1200  # 307,200 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; ``cut`` bytes into an answer the connection drops."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        server = self.server
        requested = self.headers.get("Range")
        server.seen.append((self.command, self.path, requested))
        if server.refuses:
            self.send_error(server.refuses)
            return
        if not self.path.endswith(".bin"):
            self.send_error(404)
            return
        start = int(requested.removeprefix("bytes=").split("-")[0]) if requested and server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if requested and server.ranges else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", f'"{server.tag}"')
        self.send_header("Content-Type", server.kind)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            stop = len(CONTENT) if server.cut is None else start + server.cut
            self.wfile.write(CONTENT[start:stop])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.cut, server.ranges, server.tag = [], None, True, SHA256
    server.kind, server.refuses = "application/octet-stream", None
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of latentlab and of the hub client; no proxy between the test and its server."""
    monkeypatch.setenv("LATENTLAB_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def served(server: ThreadingHTTPServer, path: str = "model.bin", **facts: object) -> WeightFile:
    return WeightFile(**{"repo": "lab/tok", "filename": "model.bin", "url": f"{server.url}/{path}", **facts})


def one_line(raised: pytest.ExceptionInfo[UserError]) -> str:
    text = str(raised.value)
    assert "\n" not in text
    return text


# --- finding ---------------------------------------------------------------------------------------------------------


def test_absent_file_tells_everything_needed_to_get_it(cache: Path) -> None:
    file = WeightFile("lab/tok", "sub/model.ckpt", size=888_000_000)
    with pytest.raises(UserError) as raised:
        find_weights(file)
    text = one_line(raised)
    for part in ("sub/model.ckpt", "888.0 MB", "huggingface.co/lab/tok", str(cache / "lab--tok/sub/model.ckpt")):
        assert part in text
    assert f"hf download lab/tok sub/model.ckpt --local-dir {cache / 'lab--tok'}" in text


def test_absent_file_with_an_address_gives_a_curl_command(cache: Path) -> None:
    with pytest.raises(UserError, match=r"curl --create-dirs -L -C - -o .*'https://example.org/a.ckpt[?]dl=1'"):
        find_weights(WeightFile("lab/tok", "a.ckpt", url="https://example.org/a.ckpt?dl=1"))


def test_found_in_the_cache(cache: Path) -> None:
    file = WeightFile("lab/tok", "model.bin", size=3)
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"abc")
    assert find_weights(file) == cache / "lab--tok" / "model.bin"


def test_found_in_the_hub_cache(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--lab--tok"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.bin").write_bytes(b"abc")
    assert find_weights(WeightFile("lab/tok", "model.bin")).read_bytes() == b"abc"


def test_half_copied_file_is_noticed() -> None:
    file = WeightFile("lab/tok", "model.bin", size=4)
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b"abc")
    with pytest.raises(UserError, match="3 bytes instead of 4"):
        find_weights(file)


# --- downloading -----------------------------------------------------------------------------------------------------


def test_download(server: ThreadingHTTPServer, cache: Path) -> None:
    file = served(server, size=len(CONTENT), sha256=SHA256.upper())
    assert find_weights(file, download=True).read_bytes() == CONTENT
    assert find_weights(file) == file.path
    download_weights(file)
    assert len(server.seen) == 1, "present: no second request"


def test_file_in_a_folder_of_the_repository(server: ThreadingHTTPServer, cache: Path) -> None:
    path = download_weights(served(server, filename="sub/model.bin", sha256=SHA256))
    assert path == cache / "lab--tok" / "sub" / "model.bin"


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_interrupted_download_is_resumed(server: ThreadingHTTPServer, size: int | None) -> None:
    file = served(server, size=size, sha256=SHA256)
    server.cut = 100_000
    with pytest.raises(UserError, match="interrupted with 207200 bytes to go"):
        download_weights(file)
    assert not file.path.exists()
    server.cut = None
    assert download_weights(file).read_bytes() == CONTENT
    assert [asked for _, _, asked in server.seen] == [None, "bytes=100000-"]


def test_server_without_ranges_starts_over(server: ThreadingHTTPServer) -> None:
    file = served(server, sha256=SHA256)
    server.cut, server.ranges = 1000, False
    with pytest.raises(UserError, match="interrupted"):
        download_weights(file)
    server.cut = None
    assert download_weights(file).read_bytes() == CONTENT


def test_killed_between_download_and_rename(server: ThreadingHTTPServer) -> None:
    """All bytes are there under the temporary name: with a known size nothing is asked, without one the server says 416."""
    for name, size in (("known.bin", len(CONTENT)), ("unknown.bin", None)):
        file = served(server, filename=name, size=size, sha256=SHA256)
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.with_name(f".{name}.part").write_bytes(CONTENT)
        assert download_weights(file).read_bytes() == CONTENT
    assert [asked for _, _, asked in server.seen] == [f"bytes={len(CONTENT)}-", None]


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"sha256": "0" * 64}, f"SHA-256 {SHA256} instead of {'0' * 64}"), ({"size": 17}, "307200 bytes instead of 17")],
)
def test_wrong_content_is_not_kept(server: ThreadingHTTPServer, facts: dict[str, object], message: str) -> None:
    file = served(server, **facts)
    with pytest.raises(UserError, match=message) as raised:
        download_weights(file)
    assert "not kept" in one_line(raised)
    assert [path.name for path in file.folder.iterdir()] == [".model.bin.lock"]


def test_no_such_file_on_the_server(server: ThreadingHTTPServer) -> None:
    file = served(server, "elsewhere")
    with pytest.raises(UserError, match="HTTP 404") as raised:
        download_weights(file)
    assert str(file.path) in one_line(raised)


def test_a_web_page_is_not_taken_for_the_file(server: ThreadingHTTPServer) -> None:
    """What file hosts send when a quota is spent; without a known size and hash nothing else would notice."""
    file = served(server)
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="a web page came instead of the file"):
        download_weights(file)
    assert not file.path.exists() and not file.beside(".part").exists()


def test_offline_names_file_and_place_within_seconds(closed_port: int) -> None:
    file = WeightFile("lab/tok", "model.bin", url=f"http://127.0.0.1:{closed_port}/model.bin")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"cannot download model.bin .*refused") as raised:
        download_weights(file)
    assert str(file.path) in one_line(raised)
    assert time.monotonic() - started < 5


def test_only_web_addresses(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with pytest.raises(UserError, match="not an http"):
        download_weights(WeightFile("lab/tok", "a", url=f"file://{tmp_path}/secret"))
    with pytest.raises(UserError, match="no known address: put them at"):
        download_weights(WeightFile(None, "a"))


def test_folder_that_cannot_be_made(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write .*LATENTLAB_HOME"):
        download_weights(WeightFile("lab/tok", "model.bin"))


def test_simultaneous_downloads_share_one(server: ThreadingHTTPServer) -> None:
    file = served(server, sha256=SHA256)
    threads = [threading.Thread(target=download_weights, args=(file,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.path.read_bytes() == CONTENT
    assert len(server.seen) == 1


def point_hub_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do to the imported hub client what the environment variable HF_ENDPOINT does to a fresh one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # another test may have imported it offline
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_download_from_the_hub(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_at(server.url, monkeypatch)
    file = WeightFile("lab/tok", "sub/model.bin", size=len(CONTENT), sha256=SHA256)
    assert find_weights(file, download=True).read_bytes() == CONTENT
    assert ("GET", "/lab/tok/resolve/main/sub/model.bin", None) in server.seen
    assert sorted(path.name for path in file.path.parent.iterdir()) == [".model.bin.lock", "model.bin"]


def test_hub_out_of_reach(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    point_hub_at(f"http://127.0.0.1:{closed_port}", monkeypatch)
    file = WeightFile("lab/tok", "model.bin")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"cannot download model\.bin .*from huggingface.co/lab/tok") as raised:
        download_weights(file)
    assert str(file.path) in one_line(raised)
    assert time.monotonic() - started < 5


def test_hub_content_of_another_hash_is_not_kept(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no hash is published otherwise, the one that the hub states must be that of what came."""
    point_hub_at(server.url, monkeypatch)
    server.tag = "0" * 64
    file = WeightFile("lab/tok", "model.bin")
    with pytest.raises(UserError, match=f"does not have the SHA-256 {'0' * 64} that the hub states"):
        download_weights(file)
    assert not file.path.exists()
    server.tag = SHA256
    assert download_weights(file).read_bytes() == CONTENT


# --- the command ------------------------------------------------------------------------------------------------------


def latentlab(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="latentlab")


@pytest.fixture
def toy(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A tokenizer of three published files, one of which has no known hash, and a further release."""
    files = [
        served(server, name, filename=name, size=len(CONTENT), sha256=sha256)
        for name, sha256 in (("toy_encoder.bin", SHA256), ("toy_decoder.bin", SHA256), ("config.bin", None))
    ]
    first = Release("first", "MIT", files[0], {"latent_channels": 4}, companions=tuple(files[1:]), family="taesd")
    second = Release("second", "MIT", served(server), {"latent_channels": 4}, family="taesd")
    monkeypatch.setitem(ZOO, "toy", (first, second))
    return first


def test_fetch_downloads_every_file_of_a_release_and_verifies_it_the_next_time(
    toy: Release, server: ThreadingHTTPServer, cache: Path
) -> None:
    result = latentlab("fetch", "toy")
    assert result.exit_code == 0, result.output
    folder = cache / "lab--tok"
    names = ["toy_encoder.bin", "toy_decoder.bin", "config.bin"]
    assert all((folder / name).read_bytes() == CONTENT for name in names)
    told = [f"fetched  {folder / name} (0.3 MB, SHA-256 as published)" for name in names[:2]]
    told.append(f"fetched  {folder / 'config.bin'} (0.3 MB, SHA-256 {SHA256} (none is published to compare with))")
    assert result.stdout.splitlines() == [
        *told,
        "ready    toy, release first, licence MIT",
        "others   second: fetch them with --release",
    ]
    assert f"fetching toy_encoder.bin (0.3 MB, MIT) from {server.url}/toy_encoder.bin" in result.stderr
    seen = len(server.seen)
    again = latentlab("fetch", "toy")
    assert again.stdout == result.stdout.replace("fetched ", "here    ") and len(server.seen) == seen


def test_fetch_resumes_and_notices_changes(toy: Release, server: ThreadingHTTPServer, cache: Path) -> None:
    server.cut = 100_000
    broken = latentlab("fetch", "toy")
    assert broken.exit_code == 2 and "interrupted with 207200 bytes to go" in broken.stderr
    server.cut = None
    assert latentlab("fetch", "toy").exit_code == 0
    assert ("GET", "/toy_encoder.bin", "bytes=100000-") in server.seen
    path = cache / "lab--tok" / "toy_decoder.bin"
    path.write_bytes(CONTENT[::-1])
    changed = latentlab("fetch", "toy")
    assert changed.exit_code == 2
    assert f"{path} has SHA-256" in changed.stderr and "delete it and fetch again" in changed.stderr


def test_fetch_of_one_release(toy: Release, server: ThreadingHTTPServer, cache: Path) -> None:
    result = latentlab("fetch", "toy", "--release", "second")
    assert result.exit_code == 0 and [path for _, path, _ in server.seen] == ["/model.bin"]
    assert "ready    toy, release second" in result.stdout and "others   first" in result.stdout


def test_fetch_without_a_network_says_what_to_put_where(
    closed_port: int, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    point_hub_at(f"http://127.0.0.1:{closed_port}", monkeypatch)
    result = latentlab("fetch", "mar-kl16")
    assert result.exit_code == 2 and result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: cannot download kl16.safetensors (265.9 MB) from huggingface.co/jadechoghari/mar (")
    place = cache / "jadechoghari--mar" / "kl16.safetensors"
    assert line.endswith(f"put the file at {place}; or give --weights PATH to the command that needs them")


def test_fetch_names_every_file_that_is_missing(toy: Release, server: ThreadingHTTPServer, cache: Path) -> None:
    folder = cache / "lab--tok"
    folder.mkdir(parents=True)
    (folder / "config.bin").write_bytes(CONTENT)
    server.cut = 100
    line = latentlab("fetch", "toy").stderr.splitlines()[-1]
    assert f"put the file at {folder}/toy_encoder.bin, and toy_decoder.bin at {folder}/toy_decoder.bin; or give" in line
    assert "config.bin" not in line


def test_a_gated_repository_asks_for_an_account_or_another_release(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    point_hub_at(server.url, monkeypatch)
    server.refuses = 403
    result = latentlab("fetch", "flux2")
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert (
        "accept its terms at https://huggingface.co/black-forest-labs/FLUX.2-dev, run `hf auth login` and try again"
        in line
    )
    assert line.endswith("no account is needed for --release dev-copy or small-decoder")
    server.refuses = 401
    other = latentlab("fetch", "sd-vae").stderr.splitlines()[-1]
    assert "HTTP 401" in other and "`hf auth login`" in other and "no account is needed" not in other


def test_help_says_which_release_is_taken(toy: Release) -> None:
    """Not what suits the data, as for other commands: there is no data."""
    shown = " ".join(CliRunner().invoke(app, ["fetch", "--help"], prog_name="latentlab").stdout.split())
    assert "--release NAME Which weights (default: the first published ones)." in shown
    assert "Without --release the first published one." in shown


def test_fetch_of_what_needs_no_fetching() -> None:
    for name in ("ae", "mind"):
        assert (
            latentlab("fetch", name).stdout == f"'{name}' fashion32 ships with latentlab: there is nothing to fetch\n"
        )
    for name, other in (("vavae", "va-vae"), ("eq", "eq-vae")):
        assert latentlab("fetch", name).stdout.endswith(f"there is nothing to fetch; did you mean {other}?\n")
    unknown = latentlab("fetch", "ibk")
    assert unknown.exit_code == 2 and "unknown tokenizer 'ibk'. Did you mean ibq" in unknown.stderr
    release = latentlab("fetch", "ibq", "--release", "imagenet")
    assert release.exit_code == 2 and "unknown release of tokenizer 'ibq' 'imagenet'. Did you mean" in release.stderr
