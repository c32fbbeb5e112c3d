"""``latentlab doctor``: what this installation can do on this machine, and what it lacks."""

import json as codec
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import typer

from latentlab.cli.options import AsJson
from latentlab.errors import UserError


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: ``ok``, ``note`` (something optional is absent) or ``bad`` (the basics do not work).
        detail: what was found, and for ``bad`` what to do.
    """

    name: str
    status: Literal["ok", "note", "bad"]
    detail: str


def doctor(json: AsJson = False) -> None:
    """Report what works on this machine.

    Looks at versions, devices, memory, disk, data and weights, and says what works offline. Exit code 1 if the basics do
    not work.
    """
    checks = list(examine())
    healthy = all(check.status != "bad" for check in checks)
    if json:
        print(codec.dumps({"healthy": healthy, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.status:<4}  {check.name:<{width}}  {check.detail}")
        print("the basics work" if healthy else "the basics do not work: see the lines marked bad")
    raise typer.Exit(0 if healthy else 1)


def examine() -> Iterator[Check]:
    """Yield every check, in the order of the report."""
    yield from _software()
    yield from _machine()
    yield _guarded("cache folder", _cache)
    for split in ("test", "train"):
        yield _guarded(f"data fashion:{split}", partial(_embedded_data, split))
    yield from _weights()
    yield _guarded("offline", _offline)


def _software() -> Iterator[Check]:
    from latentlab import __version__
    from latentlab.registry import find_measurement, measurement_names
    from latentlab.results import environment

    facts = environment()
    yield Check("latentlab", "ok", f"{__version__}, Python {facts['python']}, {facts['platform']}")
    yield Check("libraries", "ok", ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))

    def load_all() -> str:
        names = measurement_names()
        for name in names:
            find_measurement(name)
        return ", ".join(names)

    yield _guarded("measurements", load_all)


def _machine() -> Iterator[Check]:
    import shutil

    import torch

    from latentlab.files import home
    from latentlab.runtime import available_devices, choose_device, prepare_threads, usable_memory

    names = [f"{d} ({torch.cuda.get_device_name(d)})" if d.startswith("cuda") else d for d in available_devices()]
    yield Check("devices", "ok", f"{', '.join(names)}; auto chooses {choose_device('auto')}")
    yield Check("threads", "ok", str(prepare_threads()))
    memory = usable_memory() / 2**30
    yield Check(
        "memory", "ok" if memory >= 3.5 else "note", f"{memory:.1f} GiB" + (" (4 are advised)" * (memory < 3.5))
    )
    for place, folder in (("here", Path.cwd()), ("cache", home())):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 2**30
        yield Check(f"disk, {place}", "ok" if free >= 1 else "note", f"{free:.1f} GiB free at {existing}")


def _cache() -> str:
    from latentlab.files import home
    from latentlab.runtime import make_writable

    make_writable(home())
    return f"{home()} (LATENTLAB_HOME moves it)"


def _embedded_data(split: str) -> str:
    import numpy as np

    from latentlab.data import open_data

    images = open_data(f"fashion:{split}")
    images.images(np.arange(1))  # reads and checks the whole file
    return f"{images.n:,} images of {images.image_size}x{images.image_size}"


def _weights() -> Iterator[Check]:
    """Run every embedded tokenizer once; look whether published weights are here."""
    from latentlab.tokenizers import zoo_entries

    for entry in zoo_entries():
        name = f"weights {entry.name}/{entry.release}"
        if entry.release == "plug-in":
            yield Check(name, "ok", "tokenizer of another package")
        elif entry.source is None:
            yield _guarded(name, partial(_embedded_tokenizer, entry.name, entry.release))
        elif entry.present:
            yield Check(name, "ok", str(entry.path))
        else:
            yield Check(name, "note", f"not here; published at {entry.source.origin}")


def _embedded_tokenizer(name: str, release: str) -> str:
    import torch

    from latentlab.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(name, release=release)
    latent = tokenizer.encode(torch.zeros(1, 3, 32, 32))
    if not torch.isfinite(tokenizer.decode(latent)).all():
        raise UserError("decodes to numbers that are not finite: install latentlab again")
    return f"embedded, latents {' x '.join(map(str, latent.shape[1:]))}"


def _offline() -> str:
    from latentlab.tokenizers import zoo_entries

    ready = [f"{entry.name}/{entry.release}" for entry in zoo_entries() if entry.present]
    return (
        "analyze, compare and encode with --data fashion, train with a shipped configuration of that data; tokenizers "
        f"{', '.join(ready) or 'none'}"
    )


def _guarded(name: str, look: Callable[[], str]) -> Check:
    """Return what ``look`` found, or its failure as a ``bad`` check."""
    try:
        return Check(name, "ok", look())
    except UserError as error:
        return Check(name, "bad", str(error))
