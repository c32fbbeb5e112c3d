"""One claim: what was published, and the function that judges it."""

from collections.abc import Callable
from dataclasses import dataclass

from latentlab.claims.evidence import Evidence, Missing
from latentlab.claims.verdict import Judgement, Verdict


@dataclass(frozen=True)
class Claim:
    """A published claim.

    Attributes:
        id: ``C1`` .. ``C18``.
        text: the claim.
        published: its evidence there, with numbers.
        judge: from the results to a judgement; raises `Missing` where there is nothing to judge.
    """

    id: str
    text: str
    published: str
    judge: Callable[[Evidence], Judgement]

    def verdict(self, evidence: Evidence) -> Verdict:
        """Judge the claim.

        Raises:
            UserError: results that are damaged.
        """
        try:
            found = self.judge(evidence)
        except Missing as missing:
            why = f"missing: {missing.what}"
            return Verdict(self.id, self.text, "undecided", why=why, published=self.published, command=missing.command)
        head = found.headline
        low, high = (head and head.interval) or (None, None)
        return Verdict(
            id=self.id,
            claim=self.text,
            verdict=found.word,
            scale=found.scale,
            n=head.n if head else None,
            value=head.value if head else None,
            low=low,
            high=high,
            effect=head.name if head else "",
            why=found.why(),
            published=self.published,
            command=found.command,
            source=found.source,
        )
