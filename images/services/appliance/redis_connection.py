"""redis-py's connections without what a call of this project has no use for: a quarter of each call's CPU time."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Connection, ConnectionPool, SSLConnection
from redis.asyncio.connection import AbstractConnection


class _PromptSending(AbstractConnection):
    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """A short command behind nothing else only has to be written: redis-py makes a task of each, for the time limit
        of a wait that there is not. What the kernel does not take at once stays with the transport, and the answer's
        own time limit ends that."""
        writer = self._writer
        # redis-py cuts what is longer.
        if writer and isinstance(command, list) and len(command) == 1 and not writer.transport.get_write_buffer_size():
            writer.writelines(command)
        else:
            await super().send_packed_command(command, check_health)


class PlainConnection(_PromptSending, Connection):
    pass


class TlsConnection(_PromptSending, SSLConnection):
    """With our context: redis-py makes one per connection, for 0.15 s, which trusts every public authority as well."""

    def __init__(self, *, context: ssl.SSLContext, **settings: Any) -> None:
        super().__init__(**settings)
        self.ssl_context.context = context


class Pool(ConnectionPool):
    """Tells neither telemetry nor listeners of each connection that comes and goes: there are none."""

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
