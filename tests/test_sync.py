"""The pull protocol without a socket: every answer a primary can give, and what is done about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearlite._native.frames import SetHeader
from nearlite.errors import (
    AnswerError,
    HistoryGoneError,
    LineageError,
    PrimaryRestoredError,
    StateMismatchError,
    SyncError,
    UnauthorizedError,
)
from nearlite.position import Position
from nearlite.sync import Apply, Done, Fetch, Local, Overlay, Pull, Seed, refusal

EITHER = True

HERE = Local(Position(7, 1, 10), 0xAA)
THERE = Local(Position(7, 1, 25), 0xBB)


def header(start: Local | None, target: Local) -> SetHeader:
    return SetHeader(
        page_size=4096,
        pages=10,
        count=3,
        start=Position(0, 0, 0) if start is None else start.position,
        target=target.position,
        hash_start=0 if start is None else start.hash,
        hash_target=target.hash,
        commit_ms=1,
        snapshot=start is None,
    )


def pulling(local: Local | None = HERE) -> Pull:
    pull = Pull(local, compress=False)
    assert isinstance(pull.start(), Fetch)
    return pull


def test_a_replica_asks_for_changes_since_its_own_position_and_hash() -> None:
    assert Pull(HERE, compress=True, wait=2.5).start() == Fetch(
        "nl/v1/changes/00000007.00000001.0000000a?hash=00000000000000aa&z=1&wait=2.5"
    )


def test_a_poll_of_a_beat_has_nothing_of_its_own_in_its_url() -> None:
    pull = Pull(HERE, compress=True, wait=2.5, compact=True, beat=179)
    assert pull.start() == Fetch(
        "nl/v1/changes/00000007.00000001.0000000a?hash=00000000000000aa&z=1&v=2&beat=179"
    )


def test_nothing_new_means_equal() -> None:
    assert pulling().nothing_new(str(HERE.position)) == Done(HERE.position)


@pytest.mark.parametrize("position", ["", "unknown", str(THERE.position)])
def test_nothing_new_since_another_position_is_refused(position: str) -> None:
    with pytest.raises(AnswerError, match="since when"):
        pulling().nothing_new(position)


def test_one_page_set_is_the_whole_sync() -> None:
    pull = pulling()
    head = header(HERE, THERE)
    assert pull.header(head) == Apply(head)
    assert pull.applied(THERE) == Done(THERE.position)


def test_a_replica_overtaken_by_another_process_is_content_when_it_got_there() -> None:
    pull = pulling()
    pull.header(header(HERE, THERE))
    assert pull.moved(Local(Position(7, 1, 30), 1)) == Done(Position(7, 1, 30))


def test_a_replica_overtaken_half_way_asks_again_from_where_it_stands() -> None:
    pull = pulling()
    pull.header(header(HERE, THERE))
    action = pull.moved(Local(Position(7, 1, 12), 0xCC))
    assert isinstance(action, Fetch)
    assert "00000007.00000001.0000000c?hash=00000000000000cc" in action.path


def test_being_overtaken_for_ever_ends_in_an_error() -> None:
    pull = pulling()
    with pytest.raises(SyncError, match="keep moving"):
        for frame in range(11, 25):
            pull.header(header(pull._local, THERE))
            pull.moved(Local(Position(7, 1, frame), 0))


def test_a_snapshot_that_hashes_right_at_once_is_done() -> None:
    pull = pulling(None)
    head = header(None, THERE)
    assert pull.header(head) == Seed(head)
    assert pull.seeded(head, held=THERE.hash) == Done(THERE.position)


def test_a_fuzzy_snapshot_is_completed_by_changes() -> None:
    pull = pulling(None)
    head = header(None, HERE)
    pull.header(head)
    action = pull.seeded(head, held=0x1234)
    assert action == Fetch("nl/v1/changes/00000007.00000001.0000000a?hash=00000000000000aa&z=0")
    over = header(HERE, THERE)
    assert pull.header(over) == Overlay(over)
    assert pull.overlaid(over, held=THERE.hash) == Done(THERE.position)


def test_a_snapshot_that_never_fits_ends_in_an_error() -> None:
    pull = pulling(None)
    head = header(None, HERE)
    pull.header(head)
    with pytest.raises(AnswerError, match="never became equal"):
        for _ in range(20):
            pull.seeded(head, held=1)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "UNAUTHORIZED", UnauthorizedError),
        (409, "LINEAGE_MISMATCH", LineageError),
        (409, "POSITION_AHEAD", PrimaryRestoredError),
        (409, "STATE_MISMATCH", StateMismatchError),
        (410, "HISTORY_GONE", HistoryGoneError),
        (500, "", SyncError),
        (404, "NOT_FOUND", SyncError),
    ],
)
def test_each_refusal_has_its_exception(status: int, code: str, kind: type[SyncError]) -> None:
    error = refusal(status, code, "why", HERE)
    assert type(error) is kind
    assert str(HERE.position) in error.state
    assert "why" in str(error)


def test_only_a_restored_primary_puts_data_at_risk() -> None:
    risky = {
        c
        for c in ("LINEAGE_MISMATCH", "POSITION_AHEAD", "HISTORY_GONE", "X")
        if refusal(409, c, "", HERE).data_at_risk
    }
    assert risky == {"POSITION_AHEAD"}


def wrong_headers() -> list[SetHeader]:
    good = header(HERE, THERE)
    return [
        header(None, THERE),
        good.replace(start=Position(7, 1, 9)),
        good.replace(target=Position(8, 1, 25)),
        good.replace(target=Position(7, 1, 9)),
    ]


@pytest.mark.parametrize("head", wrong_headers())
def test_an_answer_to_another_question_is_refused(head: SetHeader) -> None:
    with pytest.raises(AnswerError):
        pulling().header(head)


def test_changes_in_answer_to_a_request_for_a_snapshot_are_refused() -> None:
    with pytest.raises(AnswerError):
        pulling(None).header(header(HERE, THERE))


def test_nothing_in_answer_to_a_request_for_a_snapshot_is_refused() -> None:
    with pytest.raises(AnswerError):
        pulling(None).nothing_new("")


positions = st.builds(Position, *[st.integers(0, 2**32 - 1)] * 3)


@given(positions, positions)
def test_position_text_sorts_as_positions_do_and_parses_back(a: Position, b: Position) -> None:
    assert Position.parse(str(a)) == a
    assert (str(a) < str(b)) == (a < b)


@given(st.text(max_size=40))
def test_no_other_text_is_a_position(text: str) -> None:
    try:
        parsed = Position.parse(text)
    except ValueError:
        return
    assert str(parsed) == text
