"""A small server of OpenAI's chat completions that misbehaves in one way for each of its models.

    python -m tests.chat_server     prints its address and serves until it is stopped

It says of a picture which colour it has, so that an answer shows which picture it is about.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}


class ChatServer(ThreadingHTTPServer):
    """What it was asked is in `bodies`; a key that it was given must come with each request."""

    daemon_threads = True

    def __init__(self, key: str | None = None, models: tuple[str, ...] = ("painter", "other")) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key = key
        self.models = models
        self.bodies: list[dict[str, Any]] = []
        self.tries: Counter[str] = Counter()
        self.at_once = 0
        self.several = threading.Event()
        """More than one request was open at the same time."""
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


@contextmanager
def serving(key: str | None = None, models: tuple[str, ...] = ("painter", "other")) -> Iterator[ChatServer]:
    """A server as long as the block lasts."""
    server = ChatServer(key, models)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def colour(url: str) -> str:
    """The name of the nearest colour of a picture in a data URL, which must be a JPEG."""
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.format == "JPEG"
    pixel = picture.resize((1, 1)).getpixel((0, 0))
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], pixel, strict=True)))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: ChatServer

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self.error(404, "no such path")
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in self.server.models]
        return self.answer({"object": "list", "data": listed})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            return self.error(404, "no such path")
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.at_once += 1
            if self.server.at_once > 1:
                self.server.several.set()
        try:
            if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
                return self.error(401, "Incorrect API key provided")
            content = body["messages"][-1]["content"]
            picture = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
            return self.complete(body, f"a {colour(picture)} square, oil on canvas")
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def complete(self, body: dict[str, Any], text: str) -> None:
        model = body["model"]
        with self.server.lock:
            self.server.tries[model] += 1
            trial = self.server.tries[model]
        first = trial <= 2
        if model == "sociable":
            self.server.several.wait(30)
        if model == "busy" and first:
            return self.error(429, "Rate limit reached", headers={"Retry-After": "0"})
        if model == "much-too-busy":
            return self.error(429, "Rate limit reached", headers={"Retry-After": "86400"})
        if model == "poor":
            return self.error(429, "You exceeded your current quota", code="insufficient_quota")
        if model == "down" or (model == "failing" and first):
            return self.error(500, "the engine died")
        if model == "slow":
            time.sleep(1.5)
        if model == "nonsense" or (model == "nonsense-once" and first):
            return self.send(200, b"<html><body>It works!</body></html>", "text/html")
        if model == "moved":
            return self.send(307, b"", "text/plain", {"Location": "https://example.org/v1/chat/completions"})
        if model == "unpaid":
            return self.error(402, "Insufficient credits")
        if model == "no-such-path":
            return self.error(405, "Method Not Allowed")
        if model in ("gateway", "gateway-in-words") and first:
            code: int | str = 502 if model == "gateway" else "502"
            return self.answer({"error": {"message": "Provider returned error", "code": code}})
        if model == "gateway-refuses":
            return self.answer({"error": {"message": "the picture is too large", "code": 400}})
        if model == "error-without-words":
            return self.answer({"error": {"type": "unknown"}})
        if model == "error-in-200":
            return self.answer({"error": "Unexpected endpoint or method."})
        if model == "failed-choice" or (model == "failed-choice-once" and first):
            failed = {"message": "the provider broke off", "code": 502}
            choice = {"index": 0, "message": {"content": ""}, "finish_reason": "error", "error": failed}
            return self.answer({"choices": [choice]})
        if model == "unwilling":
            message = {"content": None, "refusal": "I cannot help with that."}
            return self.answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        if model == "empty-object":
            return self.answer({})
        if model == "cut" or (model == "cut-once" and first):
            self.start(200, "application/json", 10_000)
            return self.wfile.write(b'{"choices": [')
        if model == "hung-up" or (model == "hung-up-once" and first):
            return self.connection.close()
        if model in ("endless", "drip"):
            self.start(200, "application/json", None)
            while True:
                self.wfile.write(b" " * 1_000_000 if model == "endless" else b" ")
                time.sleep(0 if model == "endless" else 0.02)
        if model == "blind":
            return self.error(400, "image input is not supported by this model")
        if model == "filtered":
            return self.error(400, "The prompt was filtered.", code="content_filter")
        if model == "prudish" and "white" not in text:
            message = {"content": None, "refusal": "I cannot help with that."}
            return self.answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        if model == "no-white" and "white" in text:
            return self.error(400, "the picture cannot be decoded")
        if model == "one-at-a-time" and body.get("n", 1) > 1:
            return self.error(400, "Only one completion choice is allowed")
        if model == "newer" and "max_tokens" in body:
            return self.error(400, "Use 'max_completion_tokens' instead.", param="max_tokens")
        if model == "newer" and "temperature" in body:
            return self.error(400, "'temperature' does not support 0.6 with this model.", param="temperature")
        if model in ("gone", "paintre"):
            return self.error(404, f"The model `{model}` does not exist", code="model_not_found")
        count = 1 if model == "only-one" else body.get("n", 1)
        says = {
            "thinker": f"<think>it is red, or is it?</think>\n\n{text}",
            "lost-in-thought": "<think>it is red, or is it",
            "silent": None,
            "in-parts": [{"type": "text", "text": text[:8]}, {"type": "text", "text": text[8:]}],
        }
        reason = "length" if model in ("lost-in-thought", "long-winded") else "stop"
        reason = "content_filter" if model == "silent" else reason
        choices = [
            {
                "index": n,
                "message": {"role": "assistant", "content": says.get(model, text if n == 0 else f"{text}, take {n}")},
                "finish_reason": reason,
            }
            for n in range(count)
        ]
        if model == "sometimes-silent" and count > 1:
            choices[1]["message"]["content"] = None
        usage = {"prompt_tokens": 100, "completion_tokens": 10 * count, "total_tokens": 100 + 10 * count}
        answer = {"id": f"chatcmpl-{trial}", "object": "chat.completion", "created": 0, "model": model}
        self.answer(answer | {"choices": choices[::-1], "usage": usage})

    def answer(self, value: dict[str, Any]) -> None:
        self.send(200, json.dumps(value).encode(), "application/json")

    def error(self, status: int, message: str, headers: dict[str, str] | None = None, **more: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None} | more
        self.send(status, json.dumps({"error": error}).encode(), "application/json", headers)

    def send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.start(status, kind, len(content), headers)
        self.wfile.write(content)

    def start(self, status: int, kind: str, length: int | None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *what: object) -> None:
        """Quietly."""


if __name__ == "__main__":
    server = ChatServer()
    print(server.address, flush=True)
    server.serve_forever()
