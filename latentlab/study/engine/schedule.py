"""Which cell is next: chains that take long begin early, and one tokenizer is finished before many are begun."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from latentlab.study.cells.cell import Cell, Graph
from latentlab.study.engine.estimate import Durations

_TOGETHER_SECONDS = 60
"""About how long the cells of one process may take together."""


@dataclass
class Schedule:
    """The cells of a study on their way.

    Attributes:
        graph: all of them.
        durations: what is known of how long they take.
        done: keys of finished ones.
        running: keys of those in a process.
        failed: key -> why it was given up.
        blocked: key -> which failed cell it needs.
    """

    graph: Graph
    durations: Durations
    done: set[str]
    running: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._order = self._ranks()

    def _ranks(self) -> dict[str, tuple[bool, float, int, float]]:
        """Return what cells are sorted by.

        Begun tokenizers first, since a finished one can be archived; then the longest chain of their tokenizer, its place,
        and the chain that hangs on them.
        """
        ahead: dict[str, float] = {}
        for cell in reversed(self.graph.cells):
            ahead[cell.key] = self._rest(cell) + max(
                (ahead[user.key] for user in self.graph.users[cell.key]), default=0.0
            )
        behind: dict[str, float] = {}
        longest: dict[int, float] = {}
        for cell in self.graph.cells:
            before = max((behind[need.key] for need in cell.needs.values()), default=0.0)
            behind[cell.key] = before + self._rest(cell)
            owner = self.graph.owners[cell.key]
            longest[owner] = max(longest.get(owner, 0.0), before + ahead[cell.key])
        owners = self.graph.owners
        begun = {owners[cell.key] for cell in self.graph.cells if cell.key in self.done}
        return {
            key: (owners[key] not in begun, -round(longest[owners[key]]), owners[key], -ahead[key]) for key in ahead
        }

    def _rest(self, cell: Cell) -> float:
        return 0.0 if cell.key in self.done else self.durations.estimate(cell)

    def ready(self) -> list[Cell]:
        """Return the cells that could start now, the next one first."""
        over = (self.done, self.running, self.failed, self.blocked)
        able = [
            cell
            for cell in self.graph.cells
            if not any(cell.key in group for group in over)
            and all(need.key in self.done for need in cell.needs.values())
        ]
        return sorted(able, key=lambda cell: self._order[cell.key])

    def with_company(self, first: Cell, ready: Iterable[Cell]) -> tuple[Cell, ...]:
        """Return a ready cell and those that share its process, since starting one takes longer than many a cell.

        Only cells that nothing waits for do, of one tokenizer, and up to a minute of them.
        """
        if self.graph.users[first.key]:
            return (first,)
        company, seconds = [first], self.durations.estimate(first)
        for cell in ready:
            alike = self.graph.owners[cell.key] == self.graph.owners[first.key] and not self.graph.users[cell.key]
            longer = seconds + self.durations.estimate(cell)
            if alike and cell is not first and longer <= _TOGETHER_SECONDS:
                company.append(cell)
                seconds = longer
        return tuple(company)

    def give_up(self, cell: Cell, reason: str) -> None:
        """Note a failed cell, and block all that need it."""
        self.failed[cell.key] = reason
        waiting = list(self.graph.users[cell.key])
        while waiting:
            user = waiting.pop()
            if user.key not in self.blocked and user.key not in self.done:
                self.blocked[user.key] = cell.key
                waiting += self.graph.users[user.key]

    def left(self) -> list[Cell]:
        """Return the cells that will still be done."""
        over = (self.done, self.failed, self.blocked)
        return [cell for cell in self.graph.cells if not any(cell.key in group for group in over)]

    def seconds_left(self, workers: float) -> float:
        """Return about how long it will take: the work shared by all, but no less than the longest chain."""
        left = self.left()
        keys = {cell.key for cell in left}
        chains: dict[str, float] = {}
        for cell in left:
            before = max((chains[need.key] for need in cell.needs.values() if need.key in keys), default=0.0)
            chains[cell.key] = before + self.durations.estimate(cell)
        return max(self.durations.total(left) / workers, max(chains.values(), default=0.0))
