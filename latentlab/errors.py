"""The one exception that means "you asked for something that cannot be done", and how near misses are suggested."""

import sys
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake the user can mend: one line saying what is wrong, where, and what to do. The command line exits with 2."""


class Unmeasurable(UserError):
    """Latents were asked for a property that such latents cannot have: nobody's mistake, and no number."""


MORE_MEMORY = (
    "the memory of the GPU does not hold so much at a time: lower --batch-size (of a training raise optimiser.accumulate), give "
    "smaller images, or --device cpu"
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU has too little memory for what was asked; only torch says so, and if it did it is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Describe an unknown ``name`` with the nearest known ones, whatever their case, and the whole list."""
    names = sorted(known)
    folded = {other.casefold(): other for other in names}
    near = [folded[other] for other in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UserError(f"unknown {kind} '{name}'.{hint} Available: {', '.join(names) or 'none'}")


def run_module(main: Callable[[Sequence[str]], None]) -> None:
    """Run what ``python -m`` was asked for, as the command line does: a mistake of the user is one line and exit status 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
