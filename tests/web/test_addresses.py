"""Addresses that a stranger names are fetched from the public internet alone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from captioner.errors import BadImage
from captioner.images.fetch import fetch_image
from captioner.serving.scheduler import Busy
from captioner.web import addresses
from captioner.web.held import Held, Share
from tests.web.conftest import CAT

PRIVATE = (
    *("127.0.0.1", "10.0.0.1", "172.16.5.5", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1"),
    *("255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::"),
    *("2001:db8::1", "ff02::1", "not an address", ""),
)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8"]
)
def test_public_addresses(address: str) -> None:
    assert addresses.is_public(address)


@pytest.fixture
def picture_server() -> Iterator[tuple[int, list[bytes]]]:
    """Answers each connection with a picture, or a redirect where the path names one; what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(head := connection.recv(4096))
                    path = head.split(b" ")[1]
                    if path.startswith(b"/to/"):
                        connection.sendall(
                            b"HTTP/1.1 302 Found\r\nLocation: " + path[4:] + b"\r\nContent-Length: 0\r\n\r\n"
                        )
                    else:
                        size = b"%d" % len(CAT)
                        connection.sendall(
                            b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: "
                            + size
                            + b"\r\n\r\n"
                            + CAT
                        )

        threading.Thread(target=answer, daemon=True).start()
        yield listener.getsockname()[1], asked
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A look-up of our own: name → its addresses, a set for each time it is asked. Public ones lead to this machine."""
    known: dict[str, list[str]] = {}
    real = socket.create_connection

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        ips = known[host].pop(0).split(",") if host in known else [host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips]

    def connect(address: tuple[str, int], *rest: Any, **more: Any) -> socket.socket:
        return real(("127.0.0.1", address[1]) if address[0] == "93.184.216.34" else address, *rest, **more)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(addresses.socket, "create_connection", connect)
    return known


def test_the_address_that_was_checked_is_the_one_connected_to(
    picture_server: tuple[int, list[bytes]], names: dict[str, list[str]]
) -> None:
    port, asked = picture_server
    names["rebinding.example"] = ["93.184.216.34"]  # a second look-up would fail: there is no second set
    url = f"http://rebinding.example:{port}/cat.jpg"
    assert fetch_image(url, handlers=addresses.PUBLIC_ONLY) == CAT
    assert f"Host: rebinding.example:{port}".encode() in asked[0]


@pytest.mark.parametrize("ips", ["127.0.0.1", "93.184.216.34,127.0.0.1", "10.0.0.1", "169.254.169.254"])
def test_a_name_with_a_private_address_is_refused(
    picture_server: tuple[int, list[bytes]], names: dict[str, list[str]], ips: str
) -> None:
    port, asked = picture_server
    names["mixed.example"] = [ips]
    with pytest.raises(BadImage, match="not a public address"):
        fetch_image(f"http://mixed.example:{port}/cat.jpg", handlers=addresses.PUBLIC_ONLY)
    assert not asked


def test_every_redirect_is_checked(picture_server: tuple[int, list[bytes]], names: dict[str, list[str]]) -> None:
    port, asked = picture_server
    names["public.example"] = ["93.184.216.34"] * 3
    for target in (f"http://127.0.0.1:{port}/secret", f"http://[::1]:{port}/", "file:///etc/passwd", "ftp://x/y"):
        with pytest.raises(BadImage, match=r"not a public address|not an http or https address"):
            fetch_image(f"http://public.example:{port}/to/{target}", handlers=addresses.PUBLIC_ONLY)
        names["public.example"] = ["93.184.216.34"] * 3
    assert all(b"/to/" in head for head in asked)
    found = fetch_image(
        f"http://public.example:{port}/to/http://public.example:{port}/cat.jpg", handlers=addresses.PUBLIC_ONLY
    )
    assert found == CAT


def test_no_proxy_is_asked(names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    names["private.example"] = ["10.0.0.1"]
    with pytest.raises(BadImage, match="not a public address"):
        fetch_image("http://private.example/cat.jpg", handlers=addresses.PUBLIC_ONLY)


def test_addresses_in_requests(
    client_with: Callable[..., TestClient], picture_server: tuple[int, list[bytes]], names: dict[str, list[str]]
) -> None:
    port, asked = picture_server
    client = client_with(allow_urls=True)
    refused = client.post("/v1/generate", json={"image": f"http://127.0.0.1:{port}/"})
    assert (refused.status_code, asked) == (422, [])
    names["public.example"] = ["93.184.216.34"] * 2
    answer = client.post("/v1/generate", json={"image": f"http://public.example:{port}/cat.jpg"})
    assert "cat" in answer.json()["text"]
    small = client_with(allow_urls=True, max_bytes=len(CAT) - 1)
    large = small.post("/v1/generate", json={"image": f"http://public.example:{port}/cat.jpg"})
    assert (large.status_code, "larger than" in large.text) == (422, True)


def test_what_is_fetched_counts_as_what_is_sent_does(
    client_with: Callable[..., TestClient],
    picture_server: tuple[int, list[bytes]],
    names: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request of a few letters each could make the server hold any number of pictures."""
    port, asked = picture_server
    names["public.example"] = ["93.184.216.34"] * 9
    monkeypatch.setattr("captioner.web.held.BYTES_AT_ONCE", len(CAT) * 3 // 2)
    client = client_with(allow_urls=True, max_bytes=len(CAT) + 500)
    url = f"http://public.example:{port}/cat.jpg"
    body = {"input": [url, url], "modality": "image"}  # one after the other
    answer = client.post("/v1/embeddings", json=body)
    assert (answer.status_code, answer.headers["retry-after"], len(asked)) == (429, "1", 2)
    both = client.post("/v1/generate", json={"images": [url, url], "quality": "fast"}).json()["results"]
    assert any("as much to do as it takes" in row.get("error", "") for row in both)
    call = {"name": "read_prompt", "arguments": {"address": url}}
    asked_by_tool = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    monkeypatch.setattr(Share, "take", counting(taken := []))
    client.post("/mcp", json=asked_by_tool, headers={"accept": "application/json, text/event-stream"})
    assert sum(taken) > len(CAT)
    for _ in range(2):  # neither what is answered nor what was refused stays counted
        assert client.post("/v1/embeddings", json=body | {"input": url}).status_code == 200


def counting(taken: list[int], real: Callable[[Share, int], None] = Share.take) -> Callable[[Share, int], None]:
    """`Share.take`, which keeps what it is told."""

    def take(share: Share, size: int) -> None:
        taken.append(size)
        real(share, size)

    return take


def test_what_is_still_being_fetched_for_a_request_that_is_over_counts_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("captioner.web.held.BYTES_AT_ONCE", 100)
    held = Held(20)
    request, other = Share(held), Share(held)
    request.take(60)
    with pytest.raises(Busy):
        other.take(41)
    other.take(40)
    request.end()
    with pytest.raises(Busy):
        request.take(1)
    other.take(-10)
    assert held.bytes == 30
