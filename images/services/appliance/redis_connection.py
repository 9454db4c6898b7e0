"""redis-py's connections without what a call of this project has no use for: about a fifth of each call's CPU time."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import redis.exceptions as wire
from redis.asyncio import Connection, ConnectionPool, SSLConnection
from redis.asyncio.connection import AbstractConnection


class _LeanConnection(AbstractConnection):
    async def can_read(self) -> bool:
        """Also where the peer has reset it: redis-py looks for an orderly end, and would go on to use it."""
        return self._is_broken() or await super().can_read()

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """A short command, and no other one under way, only has to be written: redis-py makes a task of each, for the
        time limit of a wait that there is not. What the kernel does not take at once stays with the transport; the
        answer's own time limit ends that."""
        if self._is_broken():  # asyncio would write all the same; uvloop's word for it is no outage's
            await self.disconnect(nowait=True)
            raise wire.ConnectionError("the connection is closed")
        # redis-py cuts what is longer.
        writer = self._writer
        if writer and isinstance(command, list) and len(command) == 1 and not writer.transport.get_write_buffer_size():
            try:
                writer.writelines(command)
            except BaseException:
                await self.disconnect(nowait=True)  # or the pool would give it to the next call
                raise
        else:
            await super().send_packed_command(command, check_health)

    def _is_broken(self) -> bool:
        return self._writer is not None and self._writer.transport.is_closing()


class PlainConnection(_LeanConnection, Connection):
    pass


class TlsConnection(_LeanConnection, SSLConnection):
    """With our context: redis-py makes one per connection, for 0.15 s, which trusts every public authority as well."""

    def __init__(self, *, context: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(**settings)
        self.ssl_context.context = context


class Pool(ConnectionPool):
    """Without the telemetry of connections that come and go, and without the changes of credentials and of addresses
    under a connection in use, which only come with other settings than ours."""

    async def get_connection(self, *_: Any, **__: Any) -> AbstractConnection:
        connection: AbstractConnection = self.get_available_connection()  # type: ignore[no-untyped-call]
        try:
            await self.ensure_connection(connection)
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)
