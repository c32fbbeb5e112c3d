"""MIND's points on spheres, learned for the ids of another tokenizer (`latentlab.tokenizers.sphere`)."""

from collections.abc import Mapping

from latentlab.tokenizers.release import Release

RELEASES: Mapping[str, tuple[Release, ...]] = {
    # MIND, arXiv 2606.00094: the points on spheres that it learned for the ids of ``ibq``
    "mind": (Release("fashion32", "MIT", family="mind"),),
}
