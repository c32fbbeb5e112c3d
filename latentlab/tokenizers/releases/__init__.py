"""What is published of each tokenizer: one table per kind of network. Imports no torch."""

from latentlab.tokenizers.release import Release
from latentlab.tokenizers.releases import hub, kl, ldm, magvit, sequences, sphere, tiny

ZOO: dict[str, tuple[Release, ...]] = {
    **ldm.RELEASES,
    **magvit.RELEASES,
    **kl.RELEASES,
    **hub.RELEASES,
    **sequences.RELEASES,
    **sphere.RELEASES,
    **tiny.RELEASES,
}
"""Tokenizers that can be loaded by name, and their releases, the preferred one first."""
