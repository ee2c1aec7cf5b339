"""The tools for a program that starts `captioner mcp` and talks with it on its standard input and output."""

from __future__ import annotations

import signal
import sys
from collections.abc import AsyncIterable, Awaitable, Callable

import anyio
from anyio.abc import ObjectSendStream
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from captioner.errors import BadInput
from captioner.run import lastresort
from captioner.serving.engine import Engine
from captioner.web.settings import Settings
from captioner.web.tools import Tools

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
            lines = _Lines(reading, writing.send)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lines.hand_on, sending)
                await server.run(messages, writing, server.create_initialization_options())
                tasks.cancel_scope.cancel()
        return lines.is_cut

    is_cut = anyio.run(serve)
    engine.close(1.0)
    lastresort.leave_behind(engine.threads)
    if is_cut:
        raise BadInput("The input ends in the middle of a message.")


class _Lines:
    """What comes in, line by line; what is no message is answered and told of, where the SDK would pass over it."""

    def __init__(
        self, reading: AsyncIterable[SessionMessage | Exception], answer: Callable[[SessionMessage], Awaitable[None]]
    ) -> None:
        self.reading, self.answer = reading, answer
        self.is_cut = False
        """Whether the last line was no whole one."""

    async def hand_on(self, messages: ObjectSendStream[SessionMessage | Exception]) -> None:
        """All messages, until the input ends."""
        async with messages:
            async for message in self.reading:
                if isinstance(message, ValidationError):
                    await self._refuse(message.errors()[0])
                else:
                    await messages.send(message)

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
        await self.answer(SessionMessage(JSONRPCError(jsonrpc="2.0", id=None, error=error)))
