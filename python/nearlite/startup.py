"""Starting again: what becomes of the running generation, decided by what is found.

Start-up decides by this table (reference: rules A3 to A5 of the design; `StartUp.attach`):

    state.json   WAL now                                    what happens
    -----------  -----------------------------------------  ------------------------------------------
    none         any                                        a new lineage adopts the file
    bound        same salts, last known frame is there      the generation goes on
    bound        ... after an unclean stop, and the         closed at its last frame, the next begins
                 machine restarted                          there, so that no position is used twice
    bound        shorter than known, and no such excuse     the file was restored: a new lineage
    bound        gone or another                            closed at its last known frame; database
                                                            compared with what is known of it
    unbound      empty, file as the clean stop left it      the generation goes on
    unbound      empty, file touched                        compared: equal, goes on; else closed
    unbound      has frames                                 base plus frames equal the database: bound
                                                            to it; else closed

"Compared" means: every page is hashed. What differs from the known state was changed by somebody
else; those pages join the closed generation's index, so that replicas get them. Was the file
*replaced* (another inode) or has it gone back in time (its change counter is lower, or what it holds is
an earlier state that the log tells of), then it was restored from a backup, and a new lineage begins:
replicas of the old one must not follow.

A loss of power may take frames that were shown: with durability `normal`, and with `full` those of other
programs whose own setting is less. It excuses a WAL that is shorter than known.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable

import msgspec

from nearlite._native.tail import TailState, WalResetError
from nearlite.generation import NO_CHECKSUM, Generations, base_of, cookie_of
from nearlite.logformat import HashTable, Index, Journal, differences
from nearlite.logstate import Durability, State, Wal, boot_id

_LOG = logging.getLogger("nearlite")


class StartUp:
    """Decides once, at the start, and again if the WAL is ever reset under the pin.

    Args:
      generations: of a pinned tail that has no base.
      durability: of the primary.
      move_schema: commits a random step of the schema cookie (rule B7); None: the database is another
        program's, and nothing is written to it.

    Attributes:
      lost: the tail stands nowhere; `recover` has to be called again.
      recovered: how many times the WAL was found to be reset.
    """

    def __init__(
        self,
        generations: Generations,
        *,
        durability: Durability,
        move_schema: Callable[[], None] | None,
    ) -> None:
        self.generations = generations
        self._tail = generations.tail
        self._log = generations.log
        self._durability = durability
        self._move_schema = move_schema
        self.lost = False
        self.recovered = 0

    def attach(self, *, created: bool) -> None:
        """Decide by the table above. Afterwards `state` is durable and the tail has a base.

        Args:
          created: the database file is new, so there is nobody whose schema cookie could collide.
        """
        state = self._log.load()
        if state is None or state.page_size != self._tail.page_size:
            self._new_lineage(
                None if created else "this database had no log yet", state, move=not created
            )
            return
        self.generations.state = state
        found, page1 = self._tail.look(state.wal.frame if state.wal else 0)
        went_on = self._go_on_bound(found) if state.wal else self._go_on_unbound(found, page1)
        if not went_on:
            self._close_unknown(found, page1)
        running = msgspec.structs.replace(
            self.generations.state, durability=self._durability, boot_id=boot_id(), clean=False
        )
        if running != self.generations.state:
            self.generations.save(running)
        self._log.tidy(self.generations.state)

    def _go_on_bound(self, found: TailState) -> bool:
        state, wal = self.generations.state, self.generations.state.wal
        assert wal is not None
        journal = self._log.journal_load(state)
        if journal is not None and journal.frame > wal.frame and journal.checksum:
            wal = Wal(wal.salt, journal.frame, journal.checksum)
            found, _ = self._tail.look(wal.frame)
        if (found.salt, found.checksum) != (wal.salt, wal.checksum) or found.live < wal.frame:
            return False
        table = self.generations.base_table()
        if table is None:
            return False
        base = state.base
        self._tail.load(
            table,
            frame=base.frame,
            salt=wal.salt if base.frame else None,
            checksum=base.checksum,
        )
        if not self._replay() or not self._agrees(journal):
            return False
        self.generations.journal_again()
        if self._power_was_lost():
            _LOG.warning(
                "the machine restarted without a clean stop: generation %d is closed at frame %d so "
                "that no position is used twice; no committed data is affected by this",
                state.generation,
                self._tail.frame,
            )
            self.generations.close_here()
        return True

    def _power_was_lost(self) -> bool:
        """Whether the system went down under the running primary (rule A4)."""
        state = self.generations.state
        return not state.clean and state.boot_id != boot_id()

    def _agrees(self, journal: Journal | None) -> bool:
        if journal is None or not journal.commits:
            return True
        last = journal.index(self.generations.base_commit())
        return self._tail.lookup(last.frame) == last.hash

    def _go_on_unbound(self, found: TailState, page1: bytes) -> bool:
        state = self.generations.state
        table = self.generations.base_table()
        if found.live == 0:
            if table is not None and state.seen == self.generations.look_at_file(page1):
                self._tail.load(table, frame=0, salt=None, checksum=NO_CHECKSUM)
                return True
            self._tail.scan()
            now = self._tail.state()
            return (now.frame, now.pages, f"{now.hash:016x}") == (
                0,
                state.base.pages,
                state.base.hash,
            )
        if table is None or any(old.salt == found.salt for old in state.archived):
            return False
        self._tail.load(table, frame=0, salt=None, checksum=NO_CHECKSUM)
        if not self._replay():
            return False
        self._tail.begin()
        try:
            _, bad = self._tail.verify()
        finally:
            self._tail.end()
        if bad:
            return False
        self.generations.bind()
        return True

    def _replay(self) -> bool:
        try:
            self._tail.begin()
        except WalResetError as error:
            _LOG.warning(
                "the WAL does not continue generation %d: %s",
                self.generations.state.generation,
                error,
            )
            return False
        self._tail.end()
        return True

    def recover(self) -> None:
        """The WAL was reset under the pin, by whatever means: close the generation, begin the next.

        Until that has succeeded `lost` is true and nothing may be shown.
        """
        self.lost = True
        if self.generations.unsettled:
            self.generations.settle()
        else:
            self._tail.repin()
            found, page1 = self._tail.look(0)
            self._close_unknown(found, page1)
        self.lost = False
        self.recovered += 1

    # ------------------------------------------------------------ closing without a roll

    def _close_unknown(self, found: TailState, page1: bytes) -> None:
        """The WAL that the generation was bound to is gone, or is not what it was."""
        state = self.generations.state
        journal = self._log.journal_load(state)
        index = self._last_known(journal)
        self._tail.scan()
        now = self._tail.state()
        foreign = (now.pages, now.hash) != (index.pages, index.hash)
        if foreign and self._restored(found, page1, journal, index):
            self._new_lineage(
                "the database file was restored or replaced", self.generations.state, move=True
            )
            return
        if foreign:
            old = self.generations.base_table()
            new = self._tail.table(1, now.pages)
            changed = set(range(1, now.pages + 1)) if old is None else differences(old, new)
            index = index.with_changes(changed | index.touched())
        _LOG.warning(
            "generation %d is closed at frame %d: its WAL is gone; %s. Replicas go on",
            state.generation,
            index.frame,
            "other programs changed the database" if foreign else "nothing else was changed",
        )
        self.generations.close(index, foreign=foreign)
        if (
            foreign
            and self._move_schema is not None
            and cookie_of(page1) <= (state.seen.schema if state.seen else 0)
        ):
            self._move_schema()

    def _last_known(self, journal: Journal | None) -> Index:
        """The generation as far as anything tells: its journal, or the index of a roll under way."""
        state = self.generations.state
        left = self._log.found_index(state.lineage_number, state.generation)
        if journal is not None and (left is None or journal.frame > left.frame):
            return journal.index(self.generations.base_commit())
        if left is not None:
            return left
        empty = Journal(
            state.lineage_number,
            state.generation,
            state.base.frame,
            state.page_size,
            NO_CHECKSUM,
            state.base.frame,
            "",
            b"",
            b"",
        )
        return empty.index(self.generations.base_commit())

    def _restored(
        self, found: TailState, page1: bytes, journal: Journal | None, last: Index
    ) -> bool:
        """Whether the file is an older one (called only when its content differs)."""
        state, seen = self.generations.state, self.generations.state.seen
        if seen is not None:
            now = self.generations.look_at_file(page1)
            # Not the device: its number may be another one after each start of the system.
            if now.inode != seen.inode or now.change < seen.change:
                return True
            # SQL only raises the cookie. A lower one cannot be moved out of the way in a file that is not
            # to be written to.
            if self._move_schema is None and now.schema < seen.schema:
                return True
        if self._power_was_lost():
            return False
        # The same WAL, shorter than it was: nothing else excuses that.
        known = journal.frame if journal else state.wal.frame if state.wal else 0
        same_wal = state.wal is not None and found.salt == state.wal.salt
        return (same_wal and found.live < known) or self._is_an_earlier_state(last)

    def _is_an_earlier_state(self, last: Index) -> bool:
        """Whether the database, whose pages were hashed, is one that the log knows from before.

        SQLite's change counter tells less: in WAL mode only commits that write page 1 move it.
        """
        tail = self._tail.state()
        now = (tail.pages, tail.hash)
        if now in last.states():
            return True
        return any(now in old.states() for old in self.generations.archived_indexes())

    # ------------------------------------------------------------ a new lineage

    def _new_lineage(self, reason: str | None, old: State | None, *, move: bool) -> None:
        """Begin a new history at the present state.

        Its generations go on behind those of the old one: libSQL's replicas know nothing of lineages, and must
        not find one of the same number here.
        """
        generation = 1 if old is None else old.generation + 1
        if move and self._move_schema is not None:
            self._move_schema()
        self._tail.scan()
        now = self._tail.state()
        number = secrets.randbelow((1 << 28) - 1) + 1  # the top 4 bits are the header's version
        if reason:
            # Where there was none, nobody's replicas are concerned, unless the log was removed.
            level = logging.INFO if old is None else logging.WARNING
            _LOG.log(
                level,
                "new lineage %08x: %s; replicas of another lineage start over",
                number,
                reason,
            )
        self._log.save_table(
            HashTable(
                number, generation, now.frame, self._tail.page_size, self._tail.table(1, now.pages)
            )
        )
        self.generations.state = State(
            lineage=f"{number:08x}",
            generation=generation,
            base=base_of(now),
            wal=None,
            page_size=self._tail.page_size,
            durability=self._durability,
            boot_id=boot_id(),
            clean=False,
            seen=None,
        )
        self.generations.save_begun(generation, (), now)
