"""Connections: a time limit on those that send too slowly, no wait for acknowledgements, and an end that loses no request."""

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_CLOSE = (b"connection", b"close")
_LAST = 1.0  # seconds in which an open connection may bring a last request once the service ends
_LINGER = 1.0  # seconds for a client that keeps sending to read the refusal; if closed at once, the system would drop it unread


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP, with a time limit on everything that happens between two answers.

    uvicorn's own limit ends with the first byte of a request: a client that sends its head a byte a second, or keeps sending after it
    was refused, would keep its connection for ever.

    When the service ends, uvicorn closes the connections that are open between two requests, while the next request may be on its way, and
    others after their answer, which does not say so. Here a connection is closed after its next answer, which says so, or after a second.

    Args:
        patience: seconds for the head of a request, and for the rest of a body that is not read. An idle connection that was
            answered before has uvicorn's `timeout_keep_alive`.
        uvicorn: arguments of its own protocol.
    """

    def __init__(self, patience: float, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._patience = patience
        self._allowed: float | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._has_refused = self._is_last = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Else the body of an answer would wait until the client has acknowledged its head, 40 ms with Linux.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        if not self._has_refused:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def shutdown(self) -> None:
        """Answer the request that is being answered, or else a last one if it comes soon; then close."""
        self._is_last = True
        if _CLOSE not in self.server_state.default_headers:  # which all further answers have
            self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.default_headers = self.server_state.default_headers
            self.cycle.keep_alive = False  # for an answer whose head is sent already
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._allow(None)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._allow(None)  # the service has its own limits
        elif self._is_last and not self._has_part_of_head():
            self._allow(_LAST)
        elif self.cycle is None or self._has_part_of_head() or self.conn.their_state is h11.SEND_BODY:
            self._allow(self._patience)
        else:
            self._allow(self.timeout_keep_alive)

    def _allow(self, seconds: float | None) -> None:
        """Set the time limit; a limit of the same length keeps running."""
        if seconds == self._allowed:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._allowed, self._deadline = seconds, None
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self._give_up)

    def _has_part_of_head(self) -> bool:
        return self.conn.our_state is h11.IDLE and bool(self.conn.trailing_data[0])

    def _give_up(self) -> None:
        if self.transport.get_write_buffer_size():  # the client does not read either, and closing would wait for it
            self.transport.abort()
        elif self._has_part_of_head() and not self.transport.is_closing():
            self._has_refused = True
            self.transport.write(_TOO_SLOW)
            self.transport.write_eof()
            self._deadline = self.loop.call_later(_LINGER, self.transport.abort)
        else:
            self.transport.close()
