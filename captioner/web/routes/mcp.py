"""The Model Context Protocol over HTTP at /mcp: one answer a request, and no sessions."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import APIRouter, Request, Response
from starlette.types import Message, Receive, Scope, Send

from captioner.web.context import Context, until_left
from captioner.web.inputs import bounded

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

NOT_VALID = -32600
"""JSON-RPC's number for a request that is none."""


def error(status: int, message: str) -> dict[str, Any]:
    """As JSON-RPC words an error."""
    return {"jsonrpc": "2.0", "id": None, "error": {"code": NOT_VALID, "message": message}}


ERRORS = {"/mcp": error}


def router(context: Context) -> APIRouter:
    """The one route."""
    routes = APIRouter()
    tools = Service(context)

    @routes.post("/mcp", include_in_schema=False)
    async def mcp(request: Request) -> Response:
        return Answer(tools, bounded(await request.body()))

    return routes


class Service:
    """The tools, made when they are first asked for: the protocol's library takes half a second to import."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @cached_property
    def server(self) -> Server[Any]:
        from captioner.web.tools import Tools

        return Tools(self.context.engine, self.context.settings).server()


class Answer(Response):
    """What the protocol's own library answers to a body that has been read."""

    def __init__(self, service: Service, asked: bytes) -> None:
        super().__init__()
        self.service = service
        self.asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        unread = [self.asked]

        async def again() -> Message:
            if not unread:
                return await receive()
            return {"type": "http.request", "body": unread.pop(), "more_body": False}

        largest = self.service.context.settings.max_bytes
        manager = StreamableHTTPSessionManager(
            self.service.server, json_response=True, stateless=True, max_request_body_size=largest
        )
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                """Who speaks the protocol as it was before 2026 is not watched by the library."""
                await until_left(receive)
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            async with manager.run():  # one for each request: nothing of it outlives the answer
                await manager.handle_request(scope, again, send)
            tasks.cancel_scope.cancel()
