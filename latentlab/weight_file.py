"""A published weight file: who published it, what is known about it, and where it belongs on this machine."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from latentlab.errors import UserError
from latentlab.files import file_sha256, home


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        repo: who published it: a Hugging Face hub id, unless ``url`` says otherwise; names the local folder.
        filename: name inside the repository (may have folders).
        size: bytes, where known.
        sha256: hex digest, where known.
        url: https address to download from instead of the hub.
        licence: of the weights.
        megabytes: size as the publisher's page rounds it, where the exact one is unknown; shown, never checked.
        gated: the hub gives it only to those who accepted its terms with an account.
    """

    repo: str | None
    filename: str
    size: int | None = None
    sha256: str | None = None
    url: str | None = None
    licence: str | None = None
    megabytes: float | None = None
    gated: bool = False

    @property
    def folder(self) -> Path:
        """Folder under latentlab's cache in which the file is looked for and put."""
        root = home() / "weights"
        return root / self.repo.replace("/", "--") if self.repo else root

    @property
    def path(self) -> Path:
        """Where the file belongs on this machine."""
        return self.folder / self.filename

    @property
    def origin(self) -> str:
        """Address or hub id, for messages."""
        return self.url or (f"huggingface.co/{self.repo}" if self.repo else "no known address")

    @property
    def size_text(self) -> str:
        """The size in words: exact to 0.1 MB, rounded by the publisher, or unknown."""
        if self.size is not None:
            return f"{self.size / 1e6:.1f} MB"
        return "size unknown" if self.megabytes is None else f"about {self.megabytes:,.0f} MB"

    @property
    def command(self) -> str:
        """A shell command that puts the file in place, with what leads to it in a sentence; empty where there is none."""
        path = shlex.quote(str(self.path))
        if self.url is not None:
            return f", for example: curl --create-dirs -L -C - -o {path} {shlex.quote(self.url)}"
        if self.repo is not None:
            folder = shlex.quote(str(self.folder))
            return f", for example: hf download {self.repo} {self.filename} --local-dir {folder}"
        return ""

    def beside(self, suffix: str) -> Path:
        """Return the hidden companion of `path` that ends in ``suffix``: where an unfinished download lies."""
        return self.path.with_name(f".{self.path.name}{suffix}")

    def check_size(self, path: Path) -> None:
        """Raise `UserError` unless ``path`` has the published size, where that is known."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            raise UserError(f"{path} has {size} bytes instead of {self.size}: delete it and download it again")

    def misfit(self, path: Path) -> str | None:
        """Return how the content of ``path`` differs from the published size and SHA-256, in words; None when it does not."""
        size = path.stat().st_size
        if self.size not in (None, size):
            return f"has {size} bytes instead of {self.size}"
        if self.sha256 is None:
            return None
        found = file_sha256(path)
        return None if found == self.sha256.lower() else f"has SHA-256 {found} instead of {self.sha256}"
