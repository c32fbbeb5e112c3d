"""All claims, by id."""

from collections.abc import Sequence

from latentlab.claims import collapse, diffusability, generators, geometry, mask_modelling, mind_ablations, ranking
from latentlab.claims.claim import Claim
from latentlab.errors import unknown_name

_GROUPS = (collapse, ranking, diffusability, geometry, mask_modelling, generators, mind_ablations)

CLAIMS = {
    claim.id: claim for claim in sorted((c for group in _GROUPS for c in group.CLAIMS), key=lambda c: int(c.id[1:]))
}
"""C1 to C18."""


def chosen_claims(ids: Sequence[str] | None) -> list[Claim]:
    """Return the claims with these ids, in order of their numbers; all where None.

    Raises:
        UserError: there is no such claim; near ones are named.
    """
    if ids is None:
        return list(CLAIMS.values())
    wanted = [one.strip().upper() for one in ids]
    for one in wanted:
        if one not in CLAIMS:
            raise unknown_name("claim", one, CLAIMS)
    return [claim for claim in CLAIMS.values() if claim.id in wanted]
