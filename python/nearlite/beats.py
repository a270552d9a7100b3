"""Beats: what makes one long poll of a thousand, for a cache that stands before the primary.

A cache answers many requests with what one of them was answered, if all ask for the same URL. Replicas
that stand at the same position do, but for one thing: a poll that has ended with nothing must not be
asked again under the same URL, or its stored answer would come back instead of news. So time is cut into
beats, numbered by the primary's clock; a poll names the beat that it belongs to and is answered when
that beat is over, at the latest. Every answer names the beat of the next poll, and whoever gets the
stored answer goes on with the same poll as whoever got the first one.

An answer to such a poll stays true for ever (from that position the changes lead there) but does not say
where the primary stands *now*. How old it may be is what its Cache-Control says.
"""

from __future__ import annotations

import math
import re
from typing import Final

SECONDS: Final = 10
"""Length of a beat."""
FRESH: Final = 2
"""Seconds for which an answer may be stored: whoever waits for it in a cache is to find it there (nginx
looks every half a second), and who is further behind is better off with one newer page set than
with many old ones."""
PUBLIC: Final = f"public, max-age={FRESH}, must-revalidate"
"""Cache-Control of an answer that may be shared. Without "public" no shared cache stores what was answered
to a request with Authorization (RFC 9111, 3.5); "must-revalidate" forbids it to be given out later."""

_NUMBER: Final = re.compile(r"[0-9]{1,15}", re.ASCII)
_MAX_AGE: Final = re.compile(r"max-age=([0-9]{1,9})", re.ASCII)


def number(text: str | None) -> int | None:
    """A beat as it is written in a URL or header; None when there is none."""
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def left(beat: int, now: float) -> float:
    """Seconds until a beat is over; 0.0 when it is, or when another clock must have named it.

    Args:
      now: seconds since 1970.
    """
    if (
        beat > now // SECONDS + 1
    ):  # one ahead is our own, named by a timer that ended a moment early
        return 0.0
    return max(0.0, (beat + 1) * SECONDS - now)


def following(beat: int | None, now: float, *, over: bool) -> int:
    """The beat of the next poll.

    Args:
      beat: of the poll that is being answered; None: it has none.
      now: seconds since 1970.
      over: there was nothing until the end of that beat.
    """
    here = int(now // SECONDS)
    if beat is None or beat > here + 1:
        return here
    return max(here, beat + over)


def greatest_age(cache_control: str) -> float:
    """Seconds for which a cache may have had an answer when it gives it out; infinite: nobody can say.

    Args:
      cache_control: of the answer.
    """
    directives = {directive.strip() for directive in cache_control.lower().split(",")}
    if "public" not in directives:
        return 0.0
    ages = [_MAX_AGE.fullmatch(directive) for directive in directives]
    # A second more: caches that count whole ones store it to the end of the last.
    return min((float(age[1]) + 1.0 for age in ages if age is not None), default=math.inf)
