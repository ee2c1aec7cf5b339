"""The tools for a program that starts `captioner mcp` and talks with it on its standard input and output."""

from __future__ import annotations

import signal

import anyio
from mcp.server.stdio import stdio_server

from captioner.serving.engine import Engine
from captioner.web.settings import Settings
from captioner.web.tools import Tools

TIMEOUT = 600.0
"""Seconds for a call; the first one may have to wait for a model that is fetched."""


def run(engine: Engine) -> None:
    """Answer until the input ends. Any path may be named, as on the command line; addresses only public ones."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else Ctrl+C would wait for the next line of the input
    tools = Tools(engine, Settings(allow_urls=True), any_path=True)

    async def serve() -> None:
        # Here file descriptor 1 is standard error: whatever a library prints, it cannot get between the answers.
        async with stdio_server() as (reading, writing):
            engine.start()  # a model that cannot be loaded is told to whoever asks it
            server = tools.server()
            await server.run(reading, writing, server.create_initialization_options())

    anyio.run(serve)
    engine.close(1.0)
