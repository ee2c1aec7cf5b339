"""The tools for a program that starts `captioner mcp` and talks with it on its standard input and output."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterable
from types import TracebackType
from typing import TYPE_CHECKING

import anyio
from anyio.abc import ObjectSendStream
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from captioner.errors import BadInput
from captioner.run import lastresort
from captioner.serving.engine import Engine
from captioner.web.settings import Settings
from captioner.web.tools import Tools

if TYPE_CHECKING:
    from mcp.shared._stream_protocols import WriteStream

TIMEOUT = 600.0
"""Seconds for a call; the first one may have to wait for a model that is fetched."""


def run(engine: Engine) -> None:
    """Answer until the input ends. Any path may be named, as on the command line; addresses only public ones."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else Ctrl+C would wait for the next line of the input
    tools = Tools(engine, Settings(allow_urls=True), any_path=True)

    async def serve() -> bool:
        # Here file descriptor 1 is standard error: whatever a library prints, it cannot get between the answers.
        async with stdio_server() as (reading, writing):
            engine.start()  # a model that cannot be loaded is told to whoever asks it
            server = tools.server()
            sending, messages = anyio.create_memory_object_stream[SessionMessage | Exception]()
            answers = _Answers(writing)
            lines = _Lines(reading, answers)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lines.hand_on, sending)
                await server.run(messages, answers, server.create_initialization_options())
                tasks.cancel_scope.cancel()
        return lines.is_cut

    is_cut = anyio.run(serve)
    engine.close(1.0)
    lastresort.leave_behind(engine.threads)
    if is_cut:
        raise BadInput("The input ends in the middle of a message.")


class _Lines:
    """What comes in, line by line; what is no message is answered and told of, where the SDK would pass over it."""

    def __init__(self, reading: AsyncIterable[SessionMessage | Exception], answers: _Answers) -> None:
        self.reading, self.answers = reading, answers
        self.is_cut = False
        """Whether the last line was no whole one."""

    async def hand_on(self, messages: ObjectSendStream[SessionMessage | Exception]) -> None:
        """All messages, until the input ends and what it asked is answered: the SDK cancels what it has not answered
        when there are no more messages."""
        async with messages:
            async for message in self.reading:
                if isinstance(message, ValidationError):
                    await self._refuse(message.errors()[0])
                else:
                    self.answers.expect(message)
                    await messages.send(message)
            with anyio.move_on_after(TIMEOUT):
                await self.answers.complete()

    async def _refuse(self, wrong: ErrorDetails) -> None:
        line = str(wrong["input"])
        if not line.strip():
            return
        if wrong["type"] == "json_invalid":
            error = ErrorData(code=PARSE_ERROR, message=wrong["msg"])
            self.is_cut = not line.endswith("\n")
        else:
            error = ErrorData(code=INVALID_REQUEST, message="This is no message of JSON-RPC 2.0.")
        if not self.is_cut:
            print(f"captioner: A line of the input cannot be answered. {error.message}", file=sys.stderr)
        await self.answers.send(SessionMessage(JSONRPCError(jsonrpc="2.0", id=None, error=error)))


class _Answers:
    """The stream that answers are written to, and which requests still have none."""

    def __init__(self, writing: WriteStream[SessionMessage]) -> None:
        self.writing = writing
        self.open: set[str] = set()
        self.changed = anyio.Event()

    def expect(self, message: SessionMessage | Exception) -> None:
        """A request will be answered, unless a later message cancels it."""
        match message:
            case SessionMessage(JSONRPCRequest(id=number)):
                self.open.add(str(number))
            case SessionMessage(JSONRPCNotification(method="notifications/cancelled", params={"requestId": number})):
                self.open.discard(str(number))

    async def complete(self) -> None:
        """Wait until no request is without an answer."""
        while self.open:
            self.changed = anyio.Event()
            await self.changed.wait()

    async def send(self, message: SessionMessage) -> None:
        """Write an answer, or a message of the server's own."""
        await self.writing.send(message)
        if isinstance(message.message, JSONRPCResponse | JSONRPCError):
            self.open.discard(str(message.message.id))
            self.changed.set()

    async def aclose(self) -> None:
        """Nothing more is written."""
        await self.writing.aclose()

    async def __aenter__(self) -> _Answers:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
