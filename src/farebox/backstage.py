"""The running gateway as the site sees it (web/backstage.py): joins pages and calls, which do not know each other."""

from farebox.accounts.keyring import KeyRing
from farebox.clock import Clock
from farebox.gateway.messages import Messages
from farebox.upstreams.pool import Pool
from farebox.web.backstage import Service


class Gatehouse:
    """What pages ask of the gateway of this process."""

    def __init__(self, *, keys: KeyRing, pool: Pool, messages: Messages, clock: Clock) -> None:
        self._keys = keys
        self._pool = pool
        self._messages = messages
        self._clock = clock

    def service(self, model_id: str) -> Service:
        healthy, all_ = self._pool.ways_up(model_id)
        return "down" if not healthy else "up" if healthy == all_ else "reduced"

    def forget_keys(self) -> None:
        self._keys.forget()

    async def stop_session(self, account_id: int, session: str) -> None:
        await self._messages.stopped.stop(account_id, session, self._clock())
        self._messages.end_stopped()

    async def resume_session(self, account_id: int, session: str) -> None:
        await self._messages.stopped.resume(account_id, session)
