"""Where a request runs: at once on the event loop, in a thread, in a group, or on its own connection."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from nearlite import hrana
from nearlite.hrana import (
    Describe,
    Execute,
    NotCond,
    OkCond,
    Plan,
    RunBatch,
    Script,
    StatementError,
    Step,
)
from nearlite.session import NotSharedError, Session
from nearlite.statements import Kind, is_setting

_LONG_SCRIPT: Final = 8192  # characters; compiling a longer one would hold up the event loop
_MANY_STEPS: Final = 256  # the same for a batch
FEW_STEPS: Final = 8
"""Of a batch that may run on the event loop."""
_SMALL: Final = 16 << 10  # characters and bytes of its texts and arguments
_UNCOUNTED: Final = re.compile(
    r"\W*(?:delete|drop|create|alter|reindex|vacuum|analyze)\b", re.ASCII | re.IGNORECASE
)
_LOCKLESS: Final = re.compile(
    r"\s*BEGIN(?:\s+(?:DEFERRED|READONLY))?(?:\s+TRANSACTION(?:\s+READONLY)?)?\s*;?\s*",
    re.ASCII | re.IGNORECASE,
)
_OPENING: Final = ("begin", "savepoint")
_LASTING: Final = ("temp", "pragma")
_TEMPORARY: Final = re.compile(r"\btemp(?:orary)?\b", re.ASCII | re.IGNORECASE)
# Whatever is not plainly a name, quoted or with comments in it, counts as one that lasts.
_PRAGMA: Final = re.compile(
    r"pragma(?:\s+(?:\w+\s*\.\s*)?(\w+)(?=\s*(?:[=(;]|$)))?", re.ASCII | re.IGNORECASE
)
_CLOSED: Final = frozenset({Kind.READ, Kind.SLOW, Kind.WRITE})
LOOKS: Final = frozenset({Kind.READ, Kind.SLOW, Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK})
_BEGUN: Final = frozenset({Kind.BEGIN, Kind.READ, Kind.WRITE})
_ENDS: Final = frozenset({Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK})


class Router:
    """Classifies requests of streams without a connection of their own.

    Args:
      reader: compiles; a connection that sees the newest schema.
      lasts: whether a text has been seen to last.
    """

    def __init__(self, reader: Session, lasts: Callable[[str], bool]) -> None:
        self._reader = reader
        self._lasts = lasts

    def route(self, plan: Plan, *, after_write: bool) -> Kind | StatementError:
        """READ, SLOW, WRITE or ALONE; an error when the request fails without having run.

        Args:
          plan: the request.
          after_write: a request before it in the same pipeline writes and has not run yet, so
            that what does not compile now may compile then.
        """
        try:
            if isinstance(plan, Execute):
                return self._statement(plan.step.sql, after_write)
            if isinstance(plan, RunBatch):
                return self._batch(plan, after_write)
            if isinstance(plan, Script):
                return self._script(plan, after_write)
            if isinstance(plan, Describe):
                return self._description(plan)
        except NotSharedError:
            return Kind.ALONE
        return Kind.READ

    def is_small(self, step: Step) -> bool:
        """Whether a statement has not been seen to last, carries little, and is counted in steps.

        DELETE without WHERE and DROP TABLE are a few steps, whatever the size of the table.
        """
        sql = step.sql
        size = len(sql)
        if size > _SMALL or step.named or self._lasts(sql) or _uncounted(sql):
            return False
        for value in step.args:
            if isinstance(value, (str, bytes)):
                size += len(value)
        return size <= _SMALL

    def begins(self, plan: RunBatch) -> bool:
        """Whether a batch begins a transaction, leaves it open, and is small."""
        if len(plan.steps) > FEW_STEPS:
            return False
        kinds = []
        try:
            for step in plan.steps:
                kinds.append(self._reader.prepare(step.sql).kind)
                if not self.is_small(step):
                    return False
        except (StatementError, NotSharedError):
            return False
        return kinds[0] is Kind.BEGIN and _BEGUN.issuperset(kinds)

    def leaves_only(self, plan: Plan, kinds: frozenset[Kind]) -> bool:
        """Whether all statements of a request are of these kinds, as far as can be seen here."""
        try:
            if isinstance(plan, Execute):
                return self._reader.prepare(plan.step.sql).kind in kinds
            if isinstance(plan, RunBatch):
                if len(plan.steps) > _MANY_STEPS:
                    return False
                return all(self._reader.prepare(step.sql).kind in kinds for step in plan.steps)
            if isinstance(plan, Script):
                return self._of_script(plan, kinds)
        except (StatementError, NotSharedError, UnicodeEncodeError):
            return False
        return True

    def leaves(self, plan: Plan) -> tuple[bool, bool]:
        """What a request may leave on its stream, wherever it stops: an open transaction; settings or temporary objects.

        What does not compile here, or would take long, is judged by its words.
        """
        if isinstance(plan, Execute):
            return self._leaves(plan.step.sql)
        if isinstance(plan, RunBatch):
            texts = {step.sql for step in plan.steps}
            judge = self._leaves if len(texts) <= _MANY_STEPS else _words
            found = list(map(judge, texts))
            return any(opens for opens, _ in found), any(lasts for _, lasts in found)
        if isinstance(plan, Script):
            opens, lasts = _words(plan.sql)
            return opens, lasts and not self._is_without(plan, Kind.STICKY)
        if isinstance(plan, Describe):
            return False, _words(plan.sql)[1]  # SQLite carries pragmas out while it compiles them
        return False, False

    def _leaves(self, sql: str) -> tuple[bool, bool]:
        opens, lasts = _words(sql)
        if opens or lasts:
            try:
                kind = self._reader.prepare(sql).kind
            except (StatementError, NotSharedError):
                return opens, lasts
            return kind not in _CLOSED, kind is Kind.STICKY
        return False, False

    def _is_without(self, plan: Script, kind: Kind) -> bool:
        """Whether all of a script can be seen, and no statement of it is of that kind."""
        try:
            return self._of_script(plan, frozenset(Kind) - {kind})
        except (StatementError, NotSharedError, UnicodeEncodeError):
            return False

    def is_snapshot(self, plan: RunBatch) -> bool:
        """Whether a batch is a transaction from BEGIN to COMMIT that only looks, and wants no lock."""
        if not 0 < len(plan.steps) <= _MANY_STEPS or not _LOCKLESS.fullmatch(plan.steps[0].sql):
            return False
        if not self.leaves_only(plan, LOOKS):
            return False
        kinds = [self._reader.prepare(step.sql).kind for step in plan.steps]
        return kinds.count(Kind.BEGIN) == 1 and _ends_surely(plan, kinds)

    def _of_script(self, plan: Script, kinds: frozenset[Kind]) -> bool:
        if len(plan.sql) > _LONG_SCRIPT:
            return False
        text, at = plan.sql.encode(), 0
        while (found := self._reader.split(text, at)) is not None:
            prepared, at = found
            if prepared.kind not in kinds:
                return False
        return True

    def _description(self, plan: Describe) -> Kind | StatementError:
        try:
            self._reader.prepare(plan.sql)
        except StatementError as error:
            return error
        return Kind.READ

    def _statement(self, sql: str, after_write: bool) -> Kind | StatementError:
        try:
            kind = self._reader.prepare(sql).kind
        except StatementError as error:
            if after_write and not hrana.is_refusal(error):
                return Kind.WRITE
            return error
        if kind is Kind.WRITE:
            return Kind.ALONE if self._lasts(sql) else Kind.WRITE
        return kind if kind is Kind.READ or kind is Kind.SLOW else Kind.ALONE

    def _batch(self, plan: RunBatch, after_write: bool) -> Kind | StatementError:
        if len(plan.steps) > _MANY_STEPS:
            return Kind.ALONE
        kinds = []
        unknown = False
        for step in plan.steps:
            try:
                prepared = self._reader.prepare(step.sql)
                hrana.arrange(step, prepared.statement.parameters)
            except StatementError as error:
                if hrana.is_refusal(error):
                    return error
                unknown = True
                continue
            kinds.append(prepared.kind)
            if prepared.kind is Kind.WRITE and self._lasts(step.sql):
                return Kind.ALONE
        return self._worst(kinds, unknown, after_write)

    def _script(self, plan: Script, after_write: bool) -> Kind | StatementError:
        if len(plan.sql) > _LONG_SCRIPT:
            return Kind.ALONE
        try:
            text = plan.sql.encode()
        except UnicodeEncodeError:
            return StatementError("SQL string is not Unicode text", "SQL_PARSE_ERROR")
        kinds = []
        unknown = False
        at = 0
        while True:
            try:
                found = self._reader.split(text, at)
            except StatementError:
                unknown = True  # what follows it cannot be seen; it may never be reached
                break
            if found is None:
                break
            prepared, at = found
            kinds.append(prepared.kind)
        return self._worst(kinds, unknown, after_write)

    @staticmethod
    def _worst(kinds: list[Kind], unknown: bool, after_write: bool) -> Kind:
        """One place for several statements."""
        writes = Kind.WRITE in kinds or (unknown and after_write)
        if Kind.ALONE in kinds or Kind.STICKY in kinds:
            return Kind.ALONE
        if _ENDS.isdisjoint(kinds):
            if Kind.SLOW in kinds:
                return Kind.ALONE if writes else Kind.SLOW
            return Kind.WRITE if writes else Kind.READ
        # A transaction that begins and ends here and writes is a savepoint in a group; one that
        # stays open, or only looks, needs a connection.
        whole = Kind.BEGIN in kinds and Kind.COMMIT in kinds and Kind.SLOW not in kinds
        return Kind.WRITE if whole and (writes or unknown) else Kind.ALONE


def _ends_surely(plan: RunBatch, kinds: list[Kind]) -> bool:
    """Whether its COMMIT is carried out, or a ROLLBACK where it was not, as clients have it."""
    for step, kind in zip(plan.steps, kinds, strict=True):
        if kind not in (Kind.COMMIT, Kind.ROLLBACK):
            continue
        unless = step.condition
        if unless is None:
            return True
        if (
            kind is Kind.ROLLBACK
            and isinstance(unless, NotCond)
            and isinstance(unless.cond, OkCond)
        ):
            return kinds[unless.cond.step] is Kind.COMMIT
    return False


def _words(sql: str) -> tuple[bool, bool]:
    """Whether a text may open a transaction, or change its connection, by the words in it."""
    text = sql.lower()
    lasts = False
    if any(word in text for word in _LASTING):
        lasts = _TEMPORARY.search(text) is not None or any(
            not found[1] or is_setting(found[1]) for found in _PRAGMA.finditer(text)
        )
    return any(word in text for word in _OPENING), lasts


@lru_cache(256)
def _uncounted(sql: str) -> bool:
    return _UNCOUNTED.match(sql) is not None
