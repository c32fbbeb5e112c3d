"""Archives of finished cells: a study goes on from them on another machine, and does again only what it needs."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from latentlab.cli.main import app
from latentlab.errors import UserError
from latentlab.study.archive import Archive, restore, write_archive
from latentlab.study.cells.process import RESTORED
from latentlab.study.collect import collect
from latentlab.study.engine.report import status_of
from latentlab.study.engine.run import planned

from .engine_world import opened, run_study, tiny_study, written

pytestmark = pytest.mark.usefixtures("home")

AE, MIXED = tiny_study()["tokenizers"]
SIT = tiny_study()["generators"][0]
STUDY = tiny_study(measure={"rmsc": {}}, decoder_noise=[], trajectories=None)
WIDER = {**STUDY, "generators": [{**SIT, "guidance": [1.0, 2.0, 3.0]}]}


@pytest.fixture(scope="module")
def finished(home: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study."""
    folder = tmp_path_factory.mktemp("study")
    run_study(folder, STUDY)
    return folder / "out"


@pytest.fixture(scope="module")
def archive(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its archive."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(*opened(finished.parent, STUDY), finished, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_it_holds_what_was_found_and_nothing_large(finished: Path, archive: Path) -> None:
    assert sorted(contents(archive)) == ["ae.zip", "mixed.zip"]
    names = [name for file in archive.iterdir() for name in zipfile.ZipFile(file).namelist()]
    _, graph = opened(finished.parent, STUDY)
    for cell in graph.cells:
        assert {f"{cell.stage}/{cell.key}/{name}.json" for name in ("cell", "result", "done")} <= set(names)
    assert {Path(name).suffix for name in names} == {".json", ".png"}
    assert sum(file.stat().st_size for file in archive.iterdir()) < 300_000


def test_the_command_goes_on_elsewhere(finished: Path, archive: Path, tmp_path: Path) -> None:
    """All is known: the table and the pictures are there without a cell being run."""
    opened(tmp_path, STUDY)
    arguments = [
        "study",
        "run",
        str(tmp_path / "study.yaml"),
        "--out",
        str(tmp_path / "out"),
        "--archive",
        str(archive),
    ]
    told = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert told.exit_code == 0 and "0 of 29 cells to do" in told.output and not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"29 cells taken from {archive}" in result.output
    pd.testing.assert_frame_equal(collect(tmp_path / "out").rows, collect(finished).rows)
    for name in ("ae/reconstructions.png", "ae/sit.png", "mixed/sit.png"):
        assert (tmp_path / "out" / "pictures" / name).read_bytes() == (finished / "pictures" / name).read_bytes()
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_an_addition_does_again_only_what_it_needs(finished: Path, archive: Path, tmp_path: Path) -> None:
    """A guidance scale needs the weights and latents, which no archive has, and no measurement, sample or judgement of before."""
    _, graph = opened(tmp_path, STUDY)
    assert restore(graph, tmp_path / "out", Archive(archive)) == 29
    schedule, started = run_study(tmp_path, WIDER)
    assert not schedule.failed
    rebuilt = {f"reconstruct training images with {who}" for who in ("ae", "mixed")}
    both = [f"encode fashion:{part} with {who}" for part in ("train", "test") for who in ("ae", "mixed")]
    trained = [f"train sit (seed 0) on {who}" for who in ("ae", "mixed")]
    drawn = [f"sample sit on {who}, guidance 3" for who in ("ae", "mixed")]
    assert {"train ae", "control orthogonal of ae", *rebuilt, *both, *trained, *drawn} <= set(started)
    assert not any(title.startswith("measure") or "guidance 1" in title or "guidance 2" in title for title in started)
    rows = collect(tmp_path / "out").rows
    assert len(rows) == 6 and (rows["error"] == "").all() and rows["gfd_fashion_classifier"].notna().all()
    before = collect(finished).rows.set_index(["tokenizer", "guidance"])["gfd_fashion_classifier"]
    assert rows.set_index(["tokenizer", "guidance"])["gfd_fashion_classifier"].loc[before.index].equals(before)


def test_a_plan_that_needs_files_takes_only_the_rest(archive: Path, tmp_path: Path) -> None:
    """Cells whose weights or latents are needed are not taken; their results would be no use."""
    _, graph = opened(tmp_path, WIDER)
    count = restore(graph, tmp_path / "out", Archive(archive))
    assert 0 < count < 29
    taken = {cell.title for cell in graph.cells if (cell.folder(tmp_path / "out") / "done.json").is_file()}
    assert "measure rmsc of ae" in taken and "train ae" not in taken and "train sit (seed 0) on mixed" not in taken
    assert len(planned(graph, tmp_path / "out").left()) == len(graph.cells) - count
    assert len(planned(graph, tmp_path / "elsewhere", Archive(archive).keys(graph)).left()) == len(graph.cells) - count


def test_the_same_cells_make_the_same_bytes(finished: Path, archive: Path, tmp_path: Path) -> None:
    study, graph = opened(tmp_path, STUDY)
    write_archive(study, graph, finished, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(archive)
    restore(graph, tmp_path / "out", Archive(archive))
    done = next((tmp_path / "out").rglob("done.json"))
    assert json.loads(done.read_text())[RESTORED] is True
    write_archive(study, graph, tmp_path / "out", tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(archive)


def test_archiving_only_adds(archive: Path, tmp_path: Path) -> None:
    """What another sitting or plan has archived stays, pictures that this one does not have included."""
    _, graph = opened(tmp_path, STUDY)
    alone, only_ae = opened(
        tmp_path / "alone", {**STUDY, "tokenizers": [AE], "generators": [{**SIT, "guidance": [2.0]}]}
    )
    restore(only_ae, tmp_path / "out", Archive(archive))
    place = tmp_path / "archive"
    place.mkdir()
    (place / "mixed.zip").write_bytes((archive / "mixed.zip").read_bytes())
    assert [file.name for file in write_archive(alone, only_ae, tmp_path / "out", place)] == ["ae.zip"]
    assert sorted(contents(place)) == ["ae.zip", "mixed.zip"]
    (place / "ae.zip").write_bytes((archive / "ae.zip").read_bytes())
    write_archive(alone, only_ae, tmp_path / "out", place)
    assert contents(place) == contents(archive)
    assert Archive(place).keys(graph) == {cell.key for cell in graph.cells}


def test_a_redo_that_fails_costs_nothing_that_was_known(archive: Path, tmp_path: Path) -> None:
    """A training that is done again for an added scale, and cannot be: rows that were complete stay so, and status is honest."""
    out = tmp_path / "out"
    _, graph = opened(tmp_path, STUDY)
    restore(graph, out, Archive(archive))
    graph.write(out)
    assert status_of(out)["done"] == 29
    _, wider = opened(tmp_path, WIDER)
    wider.write(out)
    told = status_of(out)
    assert told["stages"]["train_tokenizer"]["waiting"] == 1 and told["stages"]["measure"]["done"] == 2
    assert told["rows_done"] == 0 and told["seconds_of_work_left"] > 0  # of every row a training is to be done again
    (cell,) = (cell for cell in wider.cells if cell.stage == "train_tokenizer")
    (cell.folder(out) / "run").write_text("in the way of the training")
    schedule, started = run_study(tmp_path, WIDER)
    assert started == ["train ae", "train ae"] and list(schedule.failed) == [cell.key]
    assert [one["title"] for one in status_of(out)["failed"]] == ["train ae"]
    rows = collect(out).rows
    assert (rows.loc[rows["guidance"] < 3, "error"] == "").all()
    blocked = {cell.title for cell in wider.cells if cell.key in schedule.blocked}
    assert "sample sit on mixed, guidance 3" in blocked and not any("guidance 1" in title for title in blocked)


def test_the_command_archives(finished: Path, archive: Path, tmp_path: Path) -> None:
    (finished / "plan.yaml").write_text((finished.parent / "study.yaml").read_text())
    result = CliRunner().invoke(app, ["study", "archive", str(finished), "--to", str(tmp_path / "kept")])
    assert result.exit_code == 0 and "(2 files, " in result.output
    assert contents(tmp_path / "kept") == contents(archive)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_nothing_to_archive_or_to_take(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", "archive", str(tmp_path), "--to", str(tmp_path / "kept")])
    assert result.exit_code == 2 and "holds no study" in result.output
    study, graph = opened(tmp_path, STUDY)
    with pytest.raises(UserError, match="no finished cell yet"):
        write_archive(study, graph, tmp_path / "out", tmp_path / "kept")
    command = ["study", "run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out"), "--archive", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "holds no archive of a study" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.json",
        "/etc/passwd",
        "evil.json",
        "sample/key\\..\\c/d",
        "sample/../b/c",
        "sample/key/../../../c",
        "sample/key//etc/passwd",
        "sample/key/C:evil",
        "unknown/key/result.json",
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ae.zip", "w") as zipped:
        zipped.writestr(name, "{}")
    with pytest.raises(UserError, match="is no file of a cell"):
        Archive(tmp_path)


def changed(source: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> None:
    """Write a zip file with other contents; None leaves a member out."""
    with zipfile.ZipFile(source) as zipped, zipfile.ZipFile(target, "w") as other:
        for name in zipped.namelist():
            if (content := change(name, zipped.read(name))) is not None:
                other.writestr(name, content)


@pytest.mark.parametrize("lost", ["cell.json", "result.json", "done.json"])
@pytest.mark.parametrize("left", [None, b"nope", b"[1]"])
def test_cells_that_lack_a_file_are_refused(lost: str, left: bytes | None, archive: Path, tmp_path: Path) -> None:
    changed(archive / "ae.zip", tmp_path / "ae.zip", lambda name, whole: left if name.endswith(lost) else whole)
    with pytest.raises(UserError, match=f"lacks {lost} of the cell"):
        restore(opened(tmp_path, STUDY)[1], tmp_path / "out", Archive(tmp_path))


def test_damaged_archives_are_refused(archive: Path, tmp_path: Path) -> None:
    """Cut off, or any byte changed: an error in words, unless the byte says nothing."""
    whole = (archive / "ae.zip").read_bytes()
    (tmp_path / "ae.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable archive of a study"):
        Archive(tmp_path)
    refused = 0
    for place in range(0, len(whole), len(whole) // 60):
        (tmp_path / "ae.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            Archive(tmp_path)
        except UserError:
            refused += 1
    assert refused > 40


def test_results_that_name_files_elsewhere_are_refused(archive: Path, tmp_path: Path) -> None:
    """An archive is somebody else's file: it must not bring pages to show what lies elsewhere on this machine."""
    evil = {"samples": "samples", "grid": "/etc/hostname", "n": 12, "record": {}}
    changed(
        archive / "ae.zip", tmp_path / "ae.zip",
        lambda name, whole: json.dumps(evil).encode() if "sample/" in name and name.endswith("result.json") else whole,
    )  # fmt: skip
    study, graph = opened(tmp_path, {**STUDY, "tokenizers": [AE]})
    restore(graph, tmp_path / "out", Archive(tmp_path))
    graph.write(tmp_path / "out")
    with pytest.raises(UserError, match="names a file outside, /etc/hostname"):
        collect(tmp_path / "out")
    with pytest.raises(UserError, match="names a file outside, /etc/hostname"):
        write_archive(study, graph, tmp_path / "out", tmp_path / "kept")


def test_an_archive_of_something_else_is_named(archive: Path, tmp_path: Path) -> None:
    file = written(tmp_path, {**STUDY, "limit": 63, "tokenizers": [{**AE, "seeds": [5]}]})
    for more in ([], ["--dry-run"]):
        command = ["study", "run", str(file), "--out", str(tmp_path / "out"), "--archive", str(archive), *more]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2 and "knows no cell of this study" in result.output
        assert len(result.output.splitlines()) == 1


def test_a_picture_that_is_gone_is_named(archive: Path, tmp_path: Path) -> None:
    study, graph = opened(tmp_path, STUDY)
    restore(graph, tmp_path / "out", Archive(archive))
    cell = next(cell for cell in graph.cells if cell.stage == "measure")
    (cell.folder(tmp_path / "out") / "result.json").unlink()
    with pytest.raises(UserError, match=r"result\.json"):
        write_archive(study, graph, tmp_path / "out", tmp_path / "kept")
