"""Keeps the worker's certificate fresh: renewed half-way through its life, and after it expired.

A machine that was off for a month comes back by itself: the request for a new certificate is signed by the
receipt key, not by the expired certificate.
"""

import asyncio
import math
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from potluck.identity import WorkerIdentity
from worker.enrol import renew
from worker.errors import Revoked, WorkerError
from worker.membership import Certificate, Membership

CHECK_S: Final = 3600.0
RETRY_S_MIN: Final = 60.0
FORCED_S_MIN: Final = 60.0


class Renewal:
    def __init__(
        self,
        *,
        membership: Membership,
        identity: WorkerIdentity,
        certificate: Certificate,
        folder: Path,
        now: Callable[[], datetime],
    ) -> None:
        self.membership = membership  # replaced when the pool tells where else it can be found
        self._identity, self._folder, self._now = identity, folder, now
        self._log = structlog.get_logger("worker.renewal")
        self._lock = asyncio.Lock()
        self._forced_at: datetime | None = None
        self.certificate = certificate

    async def ensure(self) -> Certificate:
        """A certificate that is not over. Raises WorkerError (Revoked: trying again is of no use)."""
        if self.certificate.expired(self._now()):
            await self.renew()
        return self.certificate

    async def renew(self) -> None:
        """Raises WorkerError; the old certificate then still stands."""
        old = self.certificate
        async with self._lock:
            if self.certificate is not old:  # somebody else has just renewed it
                return
            fresh = await renew(
                membership=self.membership,
                identity=self._identity,
                certificate=self.certificate,
                now=self._now(),
            )
            await asyncio.to_thread(fresh.save, self._folder)
            self.certificate = fresh
        until = fresh.times()[1].isoformat()
        self._log.info("certificate renewed", action="certificate_renewed", until=until)

    async def after_failed_handshake(self) -> None:
        """TLS failed with a certificate that looks good: the clocks may differ. Raises Revoked."""
        now = self._now()
        since_s = math.inf if self._forced_at is None else (now - self._forced_at).total_seconds()
        if 0 <= since_s < FORCED_S_MIN:  # less than nothing: this clock was set back
            return
        self._forced_at = now
        try:
            await self.renew()
        except Revoked:
            raise
        except WorkerError as error:
            self._log.warning("no new certificate", action="renewal_failed", why=str(error))

    async def run(self) -> None:
        """Until cancelled. Raises Revoked."""
        failures = 0
        while True:
            if self.certificate.renewal_due(self._now()):
                try:
                    await self.renew()
                    failures = 0
                except Revoked:
                    raise
                except WorkerError as error:
                    failures += 1
                    self._log.warning("no new certificate", action="renewal_failed", why=str(error))
            retry_s = min(CHECK_S, RETRY_S_MIN * 2.0 ** min(failures, 10))
            await asyncio.sleep(random.uniform(retry_s / 2, retry_s) if failures else CHECK_S)
