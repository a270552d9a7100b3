"""When the whole file of a replica is looked at again."""

from __future__ import annotations

import threading

from nearlite.checking import FullCheck
from nearlite.http import Deadline

EITHER = True


class Gated(FullCheck):
    """Looks at nothing, and takes until it is let go."""

    def __init__(self) -> None:
        super().__init__("no.db")
        self.looks = 0
        self.began, self.go = threading.Event(), threading.Event()

    def _look(self) -> None:
        self.looks += 1
        self.began.set()
        assert self.go.wait(10)


def test_a_doubt_that_comes_up_while_the_file_is_being_read_is_not_lost():
    check = Gated()
    waiting = threading.Thread(target=check.wait, args=(Deadline(10.0),))
    waiting.start()
    assert check.began.wait(10)
    check.again()  # about pages that the check has read already, perhaps
    check.go.set()
    waiting.join(10)
    assert not check.passed
    check.wait(Deadline(10.0))
    assert check.passed
    assert check.looks == 2
