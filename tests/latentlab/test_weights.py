"""Weight files: found, downloaded from a real local server, verified; and read without running what is in them."""

import argparse
import hashlib
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentlab.errors import UserError
from latentlab.weights import WeightFile, download_weights, find_weights, read_metadata, read_state_dict

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
        if not self.path.endswith(".bin"):
            self.send_error(404)
            return
        start = int(requested.removeprefix("bytes=").split("-")[0]) if requested and server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if requested and server.ranges else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.send_header("ETag", f'"{SHA256}"')
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
    server.seen, server.cut, server.ranges = [], None, True
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


def test_listing_weights_does_not_import_torch() -> None:
    code = "import sys, latentlab.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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
    with pytest.raises(UserError, match=r"cannot download model\.bin from huggingface.co/lab/tok") as raised:
        download_weights(file)
    assert str(file.path) in one_line(raised)
    assert time.monotonic() - started < 5


# --- reading ---------------------------------------------------------------------------------------------------------

STATE = {"conv.weight": torch.arange(24.0).view(2, 3, 2, 2), "conv.bias": torch.tensor([1, -2], dtype=torch.int64)}


def assert_state(found: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(STATE)
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def refused(path: Path) -> str:
    """Return the one line with which the file is refused; it names the file."""
    with pytest.raises(UserError) as raised:
        read_state_dict(path)
    text = one_line(raised)
    assert str(path) in text
    return text


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_reads_torch_files(path: Path, zipped: bool) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    assert_state(read_state_dict(path))


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"], ids=["by suffix", "by content"])
def test_reads_safetensors_and_its_metadata(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(dict(sorted(STATE.items())), path, metadata={"step": "7"})
    assert read_state_dict(path).keys() == STATE.keys()
    assert torch.equal(read_state_dict(path)["conv.weight"], STATE["conv.weight"])
    assert read_metadata(path) == {"step": "7"}


def test_metadata_may_be_absent_but_the_file_may_not_be_another_kind(tmp_path: Path, path: Path) -> None:
    save_file(STATE, tmp_path / "plain.safetensors")
    assert read_metadata(tmp_path / "plain.safetensors") == {}
    torch.save(STATE, path)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_metadata(path)


def test_key_and_wrappers(path: Path) -> None:
    torch.save({"state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    assert_state(read_state_dict(path, key="state_dict"))
    assert_state(read_state_dict(path, wrappers=("ema", "state_dict")))
    with pytest.raises(UserError, match="no entry 'module'; it holds state_dict, epoch, optimizer"):
        read_state_dict(path, key="module")
    with pytest.raises(UserError, match="entry 'epoch' is a int, not a state dict"):
        read_state_dict(path, key="epoch")
    assert "not tensors: state_dict, epoch, optimizer" in refused(path)
    torch.save(STATE, path)
    assert_state(read_state_dict(path, wrappers=("ema", "state_dict")))


def test_tensors_are_private_copies_of_the_file(path: Path) -> None:
    """Memory-mapped, but writing to a tensor must not change the file."""
    torch.save(STATE, path)
    read_state_dict(path)["conv.weight"].zero_()
    assert_state(read_state_dict(path))


class Attack:
    """Creates ``marker`` when unpickled freely."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle"])
def test_malicious_pickle_is_refused_and_does_not_run(path: Path, tmp_path: Path, form: str) -> None:
    marker = tmp_path / "owned"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(Attack(marker)))
    else:
        torch.save({"a": Attack(marker), **STATE}, path, _use_new_zipfile_serialization=form == "zip")
    text = refused(path)
    assert "could run code" in text and "safetensors" in text
    assert form == "plain pickle" or "asks for posix.system" in text
    assert not marker.exists()
    torch.load(path, weights_only=False) if form != "plain pickle" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the payload is a real one"


def test_harmless_classes_are_refused_by_name_and_can_be_allowed(path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(depth=3)}, path)
    assert "argparse.Namespace" in refused(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert_state(read_state_dict(path, key="model"))


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_zip_bomb_is_refused_unexpanded(path: Path) -> None:
    zipped(path, {"archive/data.pkl": bytes(64 << 20), "archive/version": b"3\n"}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "'archive/data.pkl' is compressed" in refused(path)


def test_overlapping_zip_members_are_refused(path: Path) -> None:
    """Every entry of the directory pointing at the same bytes multiplies the content without compression."""
    zipped(path, {"archive/data.pkl": bytes(1000), "archive/aaaaaaaa": b""})
    content = path.read_bytes()
    directory = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", directory + 1)
    first_entry = content[directory:second].replace(b"archive/data.pkl", b"archive/aaaaaaaa")
    end = content.index(b"PK\x05\x06")
    path.write_bytes(content[:second] + first_entry + content[end:])
    assert "members are larger than the file" in refused(path)


@pytest.mark.parametrize(
    "name", ["../evil/data.pkl", "/etc/data.pkl", "a/../../data.pkl", "..\\evil/data.pkl", "C:/data.pkl"]
)
def test_members_outside_the_archive_are_refused(path: Path, name: str) -> None:
    zipped(path, {name: pickle.dumps({}), "archive/version": b"3\n"})
    assert "points outside the archive" in refused(path)


def test_storage_larger_than_the_file_is_refused(path: Path) -> None:
    """A pickle may claim any number of elements; reading past the file would show other memory."""
    torch.save({"a": torch.zeros(1000)}, path)
    content = path.read_bytes()
    claimed = content.replace(struct.pack("<BH", 0x4D, 1000), struct.pack("<BH", 0x4D, 65000))  # BININT2
    assert claimed != content
    path.write_bytes(claimed)
    assert "not a readable torch checkpoint" in refused(path)


@pytest.mark.parametrize("zipped_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.99])
def test_truncated_file(path: Path, zipped_format: bool, keep: float) -> None:
    torch.save({"a": torch.rand(500), "b": torch.rand(500)}, path, _use_new_zipfile_serialization=zipped_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    assert "download it again" in refused(path)


def test_damaged_pickles_never_show_a_traceback(path: Path) -> None:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    for position in range(2, len(content), 11):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            read_state_dict(path)
        except UserError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>404</html>", "neither a safetensors file nor a torch checkpoint but of an unknown kind"),
        (b"\x80\x02", "not a readable torch checkpoint"),
        (b"PK", "not a readable torch checkpoint"),
        (pickle.dumps({}), "but a plain pickle, which could run code"),
        (pickle.dumps({}, protocol=2), "not a readable torch checkpoint"),
    ],
    ids=["empty", "text", "pickle magic only", "zip magic only", "plain pickle", "plain pickle of protocol 2"],
)
def test_other_content(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_state_dict(path)


def test_wrong_kinds_of_file(tmp_path: Path, path: Path) -> None:
    assert "does not exist" in refused(path)
    assert "is a folder" in refused(tmp_path)
    zipped(path, {"notes/readme.txt": b"hello"})
    assert "not a torch checkpoint" in refused(path)
    torch.save([torch.zeros(2)], path)
    assert "holds a list, not a state dict" in refused(path)
    with pytest.raises(UserError, match="does not exist"):
        read_metadata(tmp_path / "no.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 4_000_000]}},
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
        {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
        {"a": 3},
        [1],
    ],
    ids=["beyond the file", "shape", "negative", "dtype", "overflow", "not an entry", "not an object"],
)
def test_safetensors_with_a_lying_header(tmp_path: Path, header: object) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    assert "not a readable safetensors file" in refused(path)


@pytest.mark.parametrize("length", [2**63, 10**12, 100])
def test_safetensors_with_a_lying_header_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    assert "not a readable safetensors file" in refused(path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-4])
    assert "not a readable safetensors file" in refused(path)


def test_open_files_are_not_needed_afterwards(path: Path) -> None:
    """Tensors stay readable after the file is deleted."""
    buffer = io.BytesIO()
    torch.save(STATE, buffer)
    path.write_bytes(buffer.getvalue())
    found = read_state_dict(path)
    path.unlink()
    assert_state(found)


def test_no_advice_to_load_unsafely(path: Path) -> None:
    torch.save(STATE, path, pickle_protocol=4)
    text = refused(path)
    assert "Unsupported operand" in text and "weights_only" not in text
