"""Frame numbers of a generation, read on into the generations behind it. Pure.

A libSQL client in offline mode pushes what it has written without asking first where the primary is. While it was
away the primary may have ended the generation, with nothing changed since: what the client pushes then still
continues what the primary has, but under the numbers of the old generation. So these go on: behind the last frame
of a generation come the frames of the next one, as far as no other change lies in between. The client stays in
its generation, and is told nothing of the newer ones, whose first frames it has already.

Whoever only pulls goes to the next generation where its own ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from nearlite.errors import HistoryGoneError, PrimaryRestoredError
from nearlite.logstate import Archived, State


@dataclass(frozen=True, slots=True)
class Stretch:
    """Frames of one generation that follow one another in one WAL.

    Attributes:
      first: number of the first one, in the generation that is read on.
      count: how many.
      begin: frame of the WAL behind which they lie.
      closed: whose they are; None: the running generation's.
    """

    first: int
    count: int
    begin: int
    closed: Archived | None


@dataclass(frozen=True, slots=True)
class Line:
    """A generation, read on.

    Attributes:
      generation: its number.
      own: its own frames.
      stretches: those and what follows.
      unbroken: they lead to the head of the running generation.
    """

    generation: int
    own: Stretch
    stretches: tuple[Stretch, ...]
    unbroken: bool

    @property
    def last(self) -> int:
        """Number of the last frame."""
        end = self.stretches[-1]
        return end.first + end.count - 1

    @property
    def told(self) -> int:
        """The last frame that a client of this generation can have been told of."""
        if self.own.closed is None or not self.unbroken:
            return self.own.count
        return min(self.last, max(self.own.count, self.own.closed.onward))

    def at(self, frame: int) -> Stretch | None:
        """Where a frame is; None: behind the last."""
        return next((s for s in self.stretches if s.first <= frame < s.first + s.count), None)


def line_of(state: State, frame: int, generation: int) -> Line:
    """A generation, read on.

    Args:
      state: of the log.
      frame: last frame of the WAL.
      generation: whose.

    Raises:
      HistoryGoneError: the log does not know it any more.
      PrimaryRestoredError: it never was.
    """
    running = state.generation
    if generation > running:
        raise PrimaryRestoredError(
            f"the replica is in generation {generation}, the primary in {running}: it was restored to an older state",
            action="delete the replica's files and sync again",
        )
    begin = state.base.frame
    if generation == running:
        own = Stretch(1, frame - begin, begin, None)
        return Line(generation, own, (own,), unbroken=True)
    known = {one.generation: one for one in state.archived}
    found = known.get(generation)
    if found is None or found.foreign:
        raise gone(generation)
    own = Stretch(1, found.frame - found.start, found.start, found)
    line = [own]
    for number in range(generation, running):
        one = known.get(number)
        following = known.get(number + 1)
        if one is None or one.foreign or (number + 1 < running and following is None):
            return Line(generation, own, tuple(line), unbroken=False)
        start = begin if following is None else following.start
        # Not at the beginning of a WAL: the generation was ended because of frames that may have been lost.
        if start != 0:
            return Line(generation, own, tuple(line), unbroken=False)
        first = line[-1].first + line[-1].count
        end = frame if following is None else following.frame
        line.append(Stretch(first, end - start, start, following))
    return Line(generation, own, tuple(line), unbroken=True)


def gone(generation: int) -> HistoryGoneError:
    """The log does not have what is asked for."""
    return HistoryGoneError(
        f"the log does not have the frames of generation {generation} any more",
        action="delete the replica's files and sync again",
    )
