"""The process around the application: a socket, connections that may not dawdle, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from captioner import memory
from captioner.errors import BadInput
from captioner.run import lastresort
from captioner.serving.engine import Engine
from captioner.serving.scheduler import Closed
from captioner.web.app import make_app
from captioner.web.settings import PORT, Settings

HEADER_SECONDS = 10.0
"""For the headers of a request, from its first byte or the connection's first moment."""
HEADER_BYTES = 32_768
ANSWER_SECONDS = 120.0
"""In which a client takes something of its answer: else that would lie here for as long as the client likes."""
UNSENT = 16_384
"""Bytes of an answer that the system takes beyond what the client has room for. It would take 4 MB, and not tell that a
client reads before it has read a third of them."""
CONNECTIONS = 900
"""At once; more are answered 503."""
TRIM = 300
"""Looks at the clock, ten a second, after which memory is given back."""
LIMIT = 20
"""Seconds in which what runs is finished after SIGTERM."""
TRIES = 100
"""Ports that are tried after the usual one."""


def listening(host: str, port: int | None) -> socket.socket:
    """A socket on this port; None: the usual one, or the next that is free."""
    ports = range(PORT, PORT + TRIES) if port is None else (port,)
    for number in ports:
        try:
            return _bound(host, number)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise BadInput(f"{host}, port {number}, cannot be listened on ({error.strerror}).") from error
    if port is None:
        raise BadInput(f"The ports {PORT} to {PORT + TRIES - 1} are all taken: name another one.")
    raise BadInput(f"Port {port} is taken: stop what listens there, or name another port.")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(engine: Engine, settings: Settings, listener: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal says to stop, then finish what runs. `ready` is called when the default model is loaded."""
    engine.start()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what goes wrong is answered, or logged by us
    Service(config_of(engine, settings), engine, ready).run(sockets=[listener])
    engine.close(1.0)
    lastresort.leave_behind(engine.threads)  # the model is being loaded, or a batch is far from its end
    if engine.failure is not None and not isinstance(engine.failure, Closed):  # stopped before its model was loaded
        raise engine.failure


def config_of(engine: Engine, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        make_app(engine, settings),
        http=Patient,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=LIMIT,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )


class Service(uvicorn.Server):
    """Stops for SIGTERM and Ctrl+C with exit status 0, and when the model cannot be loaded."""

    def __init__(self, config: uvicorn.Config, engine: Engine, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.engine = engine
        self.ready = ready
        self.told = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which ends the process by the same signal once more."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        """Looked at ten times a second."""
        if self.engine.ready and not self.told:
            self.told = True
            self.ready()
        if counter % TRIM == TRIM - 1:
            await asyncio.get_running_loop().run_in_executor(None, memory.give_back)
        return self.engine.failure is not None or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what is new, finish what runs."""
        self.engine.stopping = True
        await super().shutdown(sockets)


class Patient(H11Protocol):
    """A connection whose requests must come in time."""

    headers_due: asyncio.TimerHandle | None = None
    reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Windows has none
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._forget()  # the time-out of an idle connection counts now
        if self.conn.trailing_data[0]:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._is_read()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """What runs is finished. A request whose body is still on its way is none of it."""
        if self.cycle is not None and self.cycle.more_body:
            self.transport.close()
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def _expect(self) -> None:
        """The clock runs while the headers of a request are on their way."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self.headers_due is None:
            self.headers_due = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _forget(self) -> None:
        if self.headers_due is not None:
            self.headers_due.cancel()
            self.headers_due = None

    def _give_up(self) -> None:
        self.headers_due = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()

    def _expect_reading(self) -> None:
        """The clock runs while more waits to be sent than the client takes at once."""
        left = self.transport.get_write_buffer_size()
        self.reading_due = self.loop.call_later(ANSWER_SECONDS, self._look_at_reading, left)

    def _look_at_reading(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._expect_reading()
        else:
            self.transport.abort()

    def _is_read(self) -> None:
        if self.reading_due is not None:
            self.reading_due.cancel()
            self.reading_due = None
