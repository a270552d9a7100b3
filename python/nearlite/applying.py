"""Gives the applier a page set that has arrived, in the form in which it came."""

from __future__ import annotations

from nearlite._native._lib import FormatError, HashError, PiecemealError, SealBrokenError
from nearlite._native.applier import Applier, State
from nearlite.arriving import Arrived
from nearlite.failing import left, unfounded
from nearlite.http import Deadline


def apply_arrived(
    applier: Applier, path: str, arrived: Arrived, deadline: Deadline
) -> State | None:
    """Apply it as one transaction; None when the file does not stand at its start, and nothing was written.

    Args:
      path: of the file, for what is said.

    Raises:
      UnfoundedError: it was told from pages that are not what they should be.
      Error, SyncError: it could not be applied; the file is as it was.
    """
    wait = left(deadline)
    if arrived.compact is not None:
        try:
            return applier.compact(arrived.compact.start, arrived.compact.data, wait=wait)
        except (HashError, FormatError, SealBrokenError) as error:
            raise unfounded(path, error) from error
    if arrived.whole is not None:
        try:
            return applier.receive(arrived.header, arrived.whole.data, wait=wait)
        except PiecemealError:
            arrived.in_memory = list(arrived.whole.chunks())
    if arrived.in_memory is not None:
        return applier.apply(arrived.header, arrived.in_memory, wait=wait)
    if not applier.begin(arrived.header, wait=wait):
        return None
    try:
        for chunk in arrived.chunks():
            with chunk:
                if not deadline.renewed:
                    left(deadline)
                applier.chunk(chunk)
        return applier.commit()
    except BaseException:
        applier.rollback()
        raise
