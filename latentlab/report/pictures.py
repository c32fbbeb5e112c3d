"""Pictures of tokenizers and generators as data URIs, small enough to travel inside the page."""

import base64
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from latentlab.report.contents import PICTURES

_SIDE = 480
"""Longest side in pixels; larger pictures are shrunk."""
_BYTES, _TOTAL = 60_000, 6_000_000
"""Largest file of one picture, and of all together."""


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Attributes:
        key: its id in the page.
        tokenizer: label.
        generator: label of what sampled it; empty for reconstructions.
        uri: the picture itself.
        width: in pixels.
        height: in pixels.
    """

    key: str
    tokenizer: str
    generator: str
    uri: str
    width: int
    height: int

    @property
    def caption(self) -> str:
        """What it shows."""
        return f"samples of {self.generator}" if self.generator else "originals above reconstructions"


def read_pictures(
    folder: Path, tokenizers: Iterable[str], generators: Iterable[str], problems: list[str]
) -> list[Picture]:
    """Return the pictures that a results folder has of these tokenizers; damaged ones are told in ``problems``."""
    wanted = [
        (tokenizer, generator, folder / PICTURES / tokenizer / f"{generator or 'reconstructions'}.png")
        for tokenizer in tokenizers
        for generator in ("", *generators)
        if _is_plain(tokenizer) and _is_plain(generator or "-")
    ]
    found = [(tokenizer, generator, file) for tokenizer, generator, file in wanted if file.is_file()]
    limit = min(_BYTES, _TOTAL // max(len(found), 1))
    pictures = []
    for number, (tokenizer, generator, file) in enumerate(found):
        try:
            uri, width, height = embedded(file, limit)
        except (OSError, ValueError, SyntaxError, Warning) as error:  # Pillow's words for a file that is no picture
            what = " ".join(str(error).replace(str(file), file.name).split())
            problems.append(f"{PICTURES}/{tokenizer}/{file.name} is damaged and left out: {what}")
            continue
        pictures.append(Picture(f"picture-{number}", tokenizer, generator, uri, width, height))
    return pictures


def _is_plain(label: str) -> bool:
    """Whether a label names a file inside its folder."""
    return label not in ("", ".", "..") and not set(label) & set("/\\\0")


def embedded(file: Path, limit: int) -> tuple[str, int, int]:
    """Return a picture as (data URI, width, height): PNG where that takes at most ``limit`` bytes, else WebP.

    PNG comes first because losses of a file format must not be taken for those of a tokenizer.

    Raises:
        OSError, ValueError, SyntaxError, Warning: not a picture, damaged, or larger than Pillow opens.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as opened:
            whole = opened.convert("RGB")
    for side, form, quality in ((_SIDE, "PNG", 0), (_SIDE, "WEBP", 90), (_SIDE, "WEBP", 60), (_SIDE // 2, "WEBP", 50)):
        picture = whole.copy()
        picture.thumbnail((side, side))
        coded = io.BytesIO()
        picture.save(coded, form, quality=quality)
        if coded.tell() <= limit:
            break
    uri = f"data:image/{form.lower()};base64,{base64.b64encode(coded.getvalue()).decode('ascii')}"
    return uri, picture.width, picture.height
