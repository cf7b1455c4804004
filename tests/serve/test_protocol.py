"""What happens on connections that clients keep open."""

import asyncio
import signal
import socket
from contextlib import asynccontextmanager

from fastapi import FastAPI

from convnext.serve import _listen, _server

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


def application(go):
    """An application that answers at once, or, for /late, when `go` is set."""
    app = FastAPI()

    @app.get("/")
    async def now():
        return "now"

    @app.get("/late")
    async def late():
        await go.wait()
        return "late"

    return app


@asynccontextmanager
async def listening(app):
    """The HTTP server of an application, the task that runs it, and its address."""
    before, listener = signal.getsignal(signal.SIGTERM), _listen("127.0.0.1", 0)
    server, address = _server(app, 5.0), listener.getsockname()
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield server, running, address
    finally:
        server.should_exit = True
        await running
        signal.signal(signal.SIGTERM, before)


async def ask(connection, path):
    """The head of the answer to a request, in lower case; its body is read, too."""
    reader, writer = connection
    writer.write(GET % path)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head


def test_no_answer_waits_for_an_acknowledgement():
    async def talk():
        async with listening(application(asyncio.Event())) as (server, _, address):
            connection = await asyncio.open_connection(*address)
            assert b"200 ok" in await ask(connection, b"/")
            (protocol,) = server.server_state.connections
            used = protocol.transport.get_extra_info("socket")
            connection[1].close()
            return used.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert asyncio.run(talk())


def test_a_service_that_ends_says_so_in_the_last_answer_of_each_connection():
    async def talk():
        go = asyncio.Event()
        async with listening(application(go)) as (server, running, address):
            fresh, kept, busy, idle = [await asyncio.open_connection(*address) for _ in range(4)]
            for connection in (kept, busy, idle):
                assert b"connection: close" not in await ask(connection, b"/")
            late = asyncio.create_task(ask(busy, b"/late"))
            await asyncio.sleep(0.1)
            server.should_exit = True
            while not running.done():  # until nothing listens any more
                try:
                    (await asyncio.open_connection(*address))[1].close()
                except ConnectionRefusedError:
                    break
                await asyncio.sleep(0.02)
            heads = [
                await ask(connection, b"/") for connection in (fresh, kept)
            ]  # they were on their way when the service was asked to end
            go.set()
            heads.append(await late)
            rest = [await asyncio.wait_for(reader.read(), 3) for reader, _ in (fresh, kept, busy, idle)]
            await asyncio.wait_for(running, 3)
            return heads, rest

    heads, rest = asyncio.run(talk())
    assert [b"200 ok" in head and b"connection: close" in head for head in heads] == [True] * 3
    assert rest == [b""] * 4
