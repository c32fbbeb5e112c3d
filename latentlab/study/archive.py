"""Finished cells of a study as files to keep, or to carry to another machine: what they found, without what they made for it.

A folder of zip files, one per tokenizer of the study file. Each holds, as ``STAGE/KEY/``, the finished cells of that tokenizer:
``cell.json``, ``result.json``, ``done.json``, and the pictures and details that figures and reports show. Weights, latents and
samples are left out: a cell whose files an unfinished one needs is done again.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from latentlab.encoding import slug
from latentlab.errors import UserError
from latentlab.files import atomic_path
from latentlab.study.cells.cell import Cell, Graph
from latentlab.study.cells.process import CELL, DONE, RESULT
from latentlab.study.cells.state import RESTORED, is_done, settled, states
from latentlab.study.collect import shown_files
from latentlab.study.plan_file import StudyFile

_WHEN = (1980, 1, 1, 0, 0, 0)
"""Time of every member, so that the same cells make the same bytes."""

_MOST_BYTES = 1 << 26
"""Of one member: pictures and JSON files are far smaller."""


class Archive:
    """The cells in a folder of archives.

    Attributes:
        keys: of the cells in it.
    """

    def __init__(self, folder: Path) -> None:
        """Look into every zip file of a folder.

        Args:
            folder: what `write_archive` wrote.

        Raises:
            UserError: there is none in it, or a file that is no archive of a study.
        """
        self._members: dict[str, tuple[Path, list[str]]] = {}
        files = sorted(folder.glob("*.zip"))
        if not files:
            raise UserError(f"{folder} holds no archive of a study: give the folder of `latentlab study archive --to`")
        for file in files:
            with _opened(file) as zipped:
                for info in zipped.infolist():
                    self._members.setdefault(_key_of(info, file), (file, []))[1].append(info.filename)
        self.keys = frozenset(self._members)

    def files(self, cell: Cell) -> dict[str, bytes]:
        """Return the files of a cell: name in its folder -> content; none if the archive does not have it.

        Raises:
            UserError: the archive is damaged.
        """
        if cell.key not in self.keys:
            return {}
        file, names = self._members[cell.key]
        with _opened(file) as zipped:
            found = {name.split("/", 2)[2]: zipped.read(name) for name in names}
        if lacking := {RESULT, DONE} - found.keys():
            raise UserError(
                f"{file} lacks {', '.join(sorted(lacking))} of the cell '{cell.title}': archive the study again"
            )
        return found


def restore(graph: Graph, out: Path, archive: Archive) -> int:
    """Write the cells of an archive that need not be done again into the folder of a study; return how many these are.

    The caller holds the folder (`latentlab.study.engine.run.only_one`).

    Args:
        graph: the cells of the study.
        out: its folder.
        archive: where finished ones are.

    Raises:
        UserError: the archive is damaged, or the folder cannot be written.
    """
    wanted = settled(graph, out, archive.keys)
    missing = [cell for cell in graph.cells if cell.key in wanted and not is_done(cell.folder(out))]
    for cell in missing:
        files = archive.files(cell)
        done = files.pop(DONE)
        for name, content in files.items():
            _write(cell.folder(out) / name, content)
        _write(cell.folder(out) / DONE, _json(json.loads(done) | {RESTORED: True}))  # last: now it counts
    return len(missing)


def write_archive(study: StudyFile, graph: Graph, out: Path, folder: Path) -> list[Path]:
    """Write every finished cell of a study to archives; return their files.

    Cells of the study that are in the archive already and not in ``out`` stay in it, so that sittings on several machines add
    up; those that the study no longer has are dropped.

    Args:
        study: its file.
        graph: its cells.
        out: its folder.
        folder: of the archives; made if need be.

    Raises:
        UserError: nothing is finished, an archive is damaged, or it cannot be written.
    """
    before = Archive(folder) if any(folder.glob("*.zip")) else None
    shown: dict[str, list[str]] = {}
    for cell, name in shown_files(graph, out, states(graph, out)).values():
        shown.setdefault(cell.key, []).append(name)
    members: dict[str, dict[str, bytes]] = {}
    for cell in graph.cells:
        files = _own_files(cell, out, shown.get(cell.key, [])) or (before.files(cell) if before else {})
        label = slug(study.tokenizers[graph.owners[cell.key]].label)
        members.setdefault(label, {}).update({f"{cell.stage}/{cell.key}/{name}": files[name] for name in files})
    if not any(members.values()):
        raise UserError(f"{out} has no finished cell yet: run `latentlab study run` first")
    return [_write_zip(folder / f"{label}.zip", files) for label, files in members.items() if files]


def _own_files(cell: Cell, out: Path, shown: list[str]) -> dict[str, bytes]:
    """Return the files of a cell that is finished in the folder of a study; none of another."""
    folder = cell.folder(out)
    if not is_done(folder):
        return {}
    done = json.loads((folder / DONE).read_text(encoding="utf-8"))
    done.pop(RESTORED, None)
    return {name: (folder / name).read_bytes() for name in (CELL, RESULT, *shown)} | {DONE: _json(done)}


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in sorted(files):
            zipped.writestr(zipfile.ZipInfo(name, _WHEN), files[name], zipfile.ZIP_DEFLATED)
    return path


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as zipped:
            yield zipped
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise UserError(f"{file} is not a readable archive of a study ({error}): archive the study again") from error


def _key_of(info: zipfile.ZipInfo, file: Path) -> str:
    """Return the cell that a member belongs to, refusing names that would lead out of its folder."""
    parts = PurePosixPath(info.filename).parts
    if len(parts) < 3 or ".." in parts or parts[0] == "/" or "\\" in info.filename or info.file_size > _MOST_BYTES:
        raise UserError(f"{file} is not an archive of a study: '{info.filename}' is no file of a cell")
    return parts[1]
