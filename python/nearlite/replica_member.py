"""A replica of a sidecar: found at its upstream, copied, followed, and served where the sidecar serves."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Final

from nearlite import errors
from nearlite._native.sealing import Key
from nearlite.finding import url_of
from nearlite.http import Token, Transport
from nearlite.live import HEARTBEAT
from nearlite.members import Member, passes
from nearlite.network import DEFAULT, Network
from nearlite.relay import ROLL_BYTES, Relay
from nearlite.replica import Replica
from nearlite.settings import DatabaseSettings
from nearlite.source import Source, Upstream
from nearlite.tally import Stats

_LOG = logging.getLogger("nearlite.sidecar")

_LATE: Final = 0.5  # seconds that the answer to a heartbeat may be late
_SOON: Final = 0.05  # seconds to wait for what is being applied
_TIMEOUT: Final = 30.0  # seconds of one exchange with an upstream


class ReplicaMember(Member):
    """A replica.

    Args:
      settings: of it; with an upstream.
      changed: see `Member`.
      served: it serves replicas as well.
      token: sent upstream.
      network: how that is reached.
      key: its file is sealed with it.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        changed: Callable[[], None],
        *,
        served: bool,
        token: Token = None,
        network: Network = DEFAULT,
        key: Key | None = None,
    ) -> None:
        super().__init__(settings, changed)
        self._served = served
        self._token = token
        self._network = network
        self._key = key
        self._asking: Transport | None = None
        self._replica: Replica | None = None
        self._relay: Relay | None = None

    @property
    def source(self) -> Source | None:
        """See `Member`."""
        return self._relay

    @property
    def upstream(self) -> Upstream | None:
        """See `Member`."""
        return self._relay

    def end(self) -> None:
        """See `Member`. What waits for the upstream is ended."""
        super().end()
        asking, replica = self._asking, self._replica
        if asking is not None:
            asking.close()
        if replica is not None and not self.open:
            replica.transport.close()

    @property
    def lag(self) -> float | None:
        """See `Member`.

        While a long poll is open and answered in time, the upstream would have said what is newer.
        """
        replica = self._replica
        if replica is None:
            return None
        since = replica.lag
        if since is None or not replica.background.follows or since > HEARTBEAT + _LATE:
            return since
        try:
            here = replica.position(wait=_SOON)
        except errors.Error:  # something large is being applied
            return since
        return replica.ahead.lag(here, replica.primary_position).seconds or 0.0

    def stats(self) -> Stats | None:
        """See `Member`."""
        replica = self._replica
        if replica is None:
            return None
        try:
            return replica.stats()
        except errors.Error:  # closed meanwhile, or nobody can read it
            return None

    @property
    def failing(self) -> str | None:
        """See `Member`."""
        if self.trouble is not None:
            return self.trouble
        replica = self._replica
        error = None if replica is None else replica.last_error
        if error is not None and not passes(error):
            return str(error)
        lag, limit = self.lag, self.settings.lag_limit
        if lag is not None and lag <= limit:
            return None
        behind = "nothing is known of its lag" if lag is None else f"it may lag by {lag:.1f} s"
        why = "" if error is None else f": {error}"
        return f"{behind}, the limit is {limit:g} s{why}"

    def _open(self) -> None:
        one, upstream = self.settings, self.settings.upstream
        assert upstream is not None
        if (
            self._served
        ):  # as Log makes it, which is not the first here: it will hold frames of the database
            with contextlib.suppress(OSError):  # whoever needs the folder says what is wrong
                os.mkdir(f"{one.path}-nearlite", 0o700)
        asking = self._asking = Transport(
            upstream.url, token=self._token, timeout=_TIMEOUT, network=self._network
        )
        try:
            if self._ending.is_set():  # whoever ended it could not end this
                raise errors.OperationalError("it is about to be closed")
            url = url_of(one, asking)
        finally:
            self._asking = None
            asking.close()
        existed = os.path.exists(one.path)
        if self._served:
            self._relay = self._open_relay(url)
            self._replica = self._relay.upstream
        else:
            self._replica = self._open_replica(url)
            self._replica.keep_up(one.interval)
        what = "a replica" if existed else "a new replica"
        _LOG.info(
            "%s: %s of %s, named %s, at %s", one.path, what, url, one.name, self._replica.position()
        )

    def _open_relay(self, url: str) -> Relay:
        one = self.settings
        if not os.path.exists(
            one.path
        ):  # the first copy takes as long as it takes, and can be ended
            self._open_replica(url).close()
            self._replica = None
        return Relay.open(
            one.path,
            url,
            token=self._token,
            network=self._network,
            timeout=_TIMEOUT,
            sync_interval=one.interval,
            roll_bytes=ROLL_BYTES if one.roll_bytes is None else one.roll_bytes,
            key=self._key,
            protocol="nearlite",
        )

    def _open_replica(self, url: str) -> Replica:
        one = self.settings
        replica = self._replica = Replica(
            os.path.realpath(one.path),
            url,
            token=self._token,
            timeout=_TIMEOUT,
            network=self._network,
            key=self._key,
        )
        try:
            if self._ending.is_set():  # as above
                raise errors.OperationalError("it is about to be closed")
            replica.open()
        except BaseException:
            self._replica = None
            replica.close()
            raise
        return replica

    def _lost(self) -> str | None:
        replica = self._replica
        assert replica is not None
        try:
            replica.check_place()
        except errors.Error:
            return "the file was replaced or removed"
        return None

    def _close(self) -> None:
        replica, self._replica = self._replica, None
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.close()
        elif replica is not None:
            replica.close()
