"""The process: its port, connections that dawdle, clients that leave, and its end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from typer.testing import CliRunner

from captioner.cli.main import app
from captioner.errors import EXTRAS, BadInput
from captioner.serving.engine import Engine
from captioner.serving.scheduler import Closed, Scheduler
from captioner.web import server as web
from captioner.web.settings import Settings
from tests.web.conftest import CAT_URL
from tests.web.served import served


def connect(address: str) -> socket.socket:
    """A bare connection."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def until_closed(connection: socket.socket) -> bytes:
    """All that the server sends before it closes the connection."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def test_the_usual_port_or_the_next_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(web, "PORT", port)
        with web.listening("127.0.0.1", None) as listener:
            assert port < listener.getsockname()[1] < port + web.TRIES
            assert web.address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(BadInput, match=f"Port {port} is taken"):
            web.listening("127.0.0.1", port)
        monkeypatch.setattr(web, "TRIES", 1)
        with pytest.raises(BadInput, match="are all taken"):
            web.listening("127.0.0.1", None)
    with pytest.raises(BadInput, match="cannot be listened on"):
        web.listening("no.such.host.invalid", 1)


def test_headers_must_come_in_time(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "HEADER_SECONDS", 0.2)
    with connect(server) as silent, connect(server) as slow, connect(server) as second:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        assert until_closed(silent) == b""
        assert until_closed(slow) == b""
        assert until_closed(second).count(b"HTTP/1.1 200") == 1


def test_headers_are_bounded(server: str) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for number in range(5000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"y" * 50))
        except OSError:  # it has hung up
            return
        assert b" 400 " in until_closed(connection)


def test_bodies_must_come_in_time(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captioner.web.limits.BODY_SECONDS", 0.2)
    with connect(server) as connection:
        connection.sendall(b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        assert b" 408 " in until_closed(connection)


def test_answers_must_be_read(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody reads would lie in memory, and hold one of the connections, for as long as the client likes."""
    monkeypatch.setattr(web, "ANSWER_SECONDS", 0.2)
    size = 30_000_000  # more than the system's own buffers take
    (tmp_path / "large.png").write_bytes(bytes(size))
    with served(tmp_path, engine) as address, connect(address) as connection:
        connection.sendall(b"GET /page/file?path=large.png HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        wait_for(lambda: 'route="/page/file",status="200"' in httpx.get(f"{address}/metrics").text)  # it is over
        left = len(until_closed(connection))
    assert 0 < left < size
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # so little that what a slow client takes is seen
        assert left < 1_000_000


def test_who_reads_slowly_is_waited_for() -> None:
    left, looks, aborted = [100], [], []
    connection: Any = web.Patient.__new__(web.Patient)
    connection.loop = SimpleNamespace(call_later=lambda seconds, look, before: looks.append((look, before)))
    connection.transport = SimpleNamespace(get_write_buffer_size=lambda: left[0], abort=lambda: aborted.append(1))
    connection._expect_reading()
    for left[0] in (99, 99):
        assert not aborted
        look, before = looks.pop()
        look(before)
    assert aborted
    assert not looks


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: str, request_line: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(request_line + b"\r\n\r\n")
        answer = until_closed(connection)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)


def test_files_beside_the_page_are_not_given_out(server: str) -> None:
    parts = urlsplit(server)
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/static/../../app.py"):
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        connection.request("GET", path)
        assert connection.getresponse().status in (404, 405), path
        connection.close()


OF_A_TOOL = {"name": "caption_image", "arguments": {"base64": CAT_URL}}
ACCEPT = "Content-Type: application/json\r\nAccept: application/json, text/event-stream"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/generate", {"image": CAT_URL}),
        ("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": OF_A_TOOL}),
    ],
)
def test_who_leaves_is_dropped_before_it_costs_a_batch(
    server: str, engine: Engine, monkeypatch: pytest.MonkeyPatch, path: str, asked: dict[str, Any]
) -> None:
    idle = Scheduler(limit=10)  # nobody takes from it
    monkeypatch.setattr(engine, "scheduler", idle)
    body = json.dumps(asked)
    with connect(server) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{ACCEPT}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        wait_for(lambda: len(idle.waiting) == 1)
    wait_for(lambda: not idle.waiting)
    idle.abandon()
    assert httpx.get(f"{server}/health").status_code == 200


def wait_for(condition: object) -> None:
    until = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def process(quick_python: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`captioner serve` as a person starts it, and its address."""
    command = [quick_python, "-m", "captioner", "serve", "--models", "mini", "--no-page", "--device", "cpu"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    line = started.stderr.readline()
    assert "answers with mini" in line
    yield started, f"http://127.0.0.1:{port}"
    started.kill()
    started.wait()


def test_sigterm_finishes_what_runs_and_exits_0(process: tuple[subprocess.Popen[str], str]) -> None:
    """A request that has come in part is dropped; it was waited for to the end."""
    started, address = process
    body = b'{"image": "' + CAT_URL.encode() + b'", "num_beams": 16, "max_new_tokens": 25, "min_new_tokens": 25}'
    head = b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(address) as connection, connect(address) as half:
        half.sendall(head + body[:1000])
        connection.sendall(head + body)
        wait_for(lambda: "captioner_memory_misses 1" in httpx.get(f"{address}/metrics").text)  # it has begun
        started.send_signal(signal.SIGTERM)
        assert until_closed(half) == b""
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"text"' in answer
    assert started.wait(30) == 0
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset
        connect(address)


def test_stopped_before_its_model_is_loaded_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(["mini"])
    monkeypatch.setattr(engine, "start", lambda: None)
    listener = web.listening("127.0.0.1", 0)

    def stop() -> None:
        httpx.get(f"{web.address_of(listener)}/health")  # an answer: from now on the signal is the server's
        os.kill(os.getpid(), signal.SIGTERM)

    stopping = threading.Thread(target=stop)
    stopping.start()
    web.run(engine, Settings(page=False), listener)
    stopping.join()
    assert isinstance(engine.failure, Closed)  # whoever waited for the model was told


@pytest.mark.parametrize(
    ("arguments", "is_told"),
    [(["--host", "0.0.0.0", "--no-auth"], True), (["--host", "0.0.0.0", "--api-key", "k"], False), ([], False)],
)
def test_a_server_without_a_key_says_so(arguments: list[str], is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def ready(engine: Engine, settings: Settings, listener: socket.socket, ready: Callable[[], None]) -> None:
        listener.close()
        ready()

    monkeypatch.setattr(web, "run", ready)
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--models", "mini", *arguments])
    assert "answers with mini" in result.stderr
    assert ("everybody who can reach 0.0.0.0 may ask" in result.stderr) == is_told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "set --api-key, or --no-auth"),
        (["--host", "localhost:8000"], "takes an address alone, not 'localhost:8000': the port is told by --port"),
        (["--host", ""], "takes an address alone, not ''"),
        (["--host", "[::1]:8000"], "takes an address alone"),
        (["--host", "http://127.0.0.1"], "takes an address alone"),
        (["no-such-folder"], "There is no folder 'no-such-folder'"),
        (["--models", "mini,no-such-model", "--port", "0"], "No model 'no-such-model'"),
        ([".", "--root", "/"], "give it, or --root, not both"),
        (["--tags", "a.csv"], "--tags are offered in Review: name a FOLDER, too."),
        ([".", "--tags", "gone.csv"], "The term list gone.csv cannot be read"),
        (["--index", "no-such-index"], "no-such-index holds no index"),
    ],
)
def test_what_is_wrong_with_the_command_line(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert words in result.stderr
    assert result.exit_code == 2


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_address_of_ipv6_may_stand_in_brackets(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """As a browser writes it, and as it is told when the server is ready."""
    told: list[str] = []
    monkeypatch.setattr(web, "run", lambda engine, settings, listener, ready: told.append(web.address_of(listener)))
    result = CliRunner().invoke(app, ["serve", "--models", "mini", "--host", host, "--port", "0"])
    if "(Address family not supported" in result.stderr or "(Cannot assign requested address)" in result.stderr:
        pytest.skip("this machine has no IPv6")
    assert result.exit_code == 0, result.stderr
    assert re.fullmatch(r"http://\[::1\]:\d+", told[0])


def test_a_key_from_a_file_may_end_with_a_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Settings] = []
    monkeypatch.setattr(web, "run", lambda engine, settings, listener, ready: started.append(settings))
    monkeypatch.setenv("CAPTIONER_SERVE_KEY", "a long one\n")
    assert CliRunner().invoke(app, ["serve", "--models", "mini", "--port", "0"]).exit_code == 0
    assert started[0].api_key == "a long one"


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, "no_such_package", "web")
    result = CliRunner().invoke(app, ["serve"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert 'pip install "captioner[web]"' in result.stderr
