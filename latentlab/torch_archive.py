"""Zip archives as `torch.save` lays them out: checked member by member before anything in them is read."""

import zipfile
from pathlib import Path, PurePosixPath

from latentlab.errors import UserError

RECORD = "/data.pkl"
"""End of the name of the member that holds the pickle; what stands before it is the name of the archive's only folder."""


def check_archive(path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of a torch checkpoint, all of them plain stored bytes that fit into the file.

    Torch never compresses, so a compressed member can only be a bomb or another program's archive.

    Raises:
        UserError: damaged, or not laid out as torch writes it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UserError(
            f"{path} is not a readable torch checkpoint, or is damaged ({why}): download it again"
        ) from error
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if not name.parts:
            raise UserError(f"{path} is refused: its member {member.filename!r} names no file")
        if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
            raise UserError(f"{path} is refused: its member '{member.filename!r}' points outside the archive")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UserError(
                f"{path} is refused: its member '{member.filename}' is compressed, torch checkpoints never are"
            )
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise UserError(f"{path} is refused: its members are larger than the file")
    if not any(member.filename.endswith(RECORD) for member in members):
        raise UserError(f"{path} is a zip archive but not a torch checkpoint: check the file")
    return members
