"""The Model Context Protocol, asked by its own client: over HTTP, and on standard input and output."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

import captioner
from captioner.errors import BadImage, BadInput
from captioner.web.tools import below
from tests.images.test_metadata import A1111, png
from tests.web.routes.conftest import COFFEE, DATA, DATA_URL, Service

Call = tuple[str, dict[str, Any]]


def ask(where: Any, *calls: Call) -> list[Any]:
    """What a client is answered, its list of tools first."""

    async def asked() -> list[Any]:
        async with Client(where) as client:
            return [await client.list_tools(), *[await client.call_tool(name, given) for name, given in calls]]

    return asyncio.run(asked())


def text(result: Any) -> str:
    (content,) = result.content
    return content.text


def test_tools_over_http(service: Service, prompt: str) -> None:
    listed, by_path, by_data, carried, compared = ask(
        f"{service.address}/mcp",
        ("caption_image", {"path": "coffee.jpg", **dict.fromkeys(("address", "base64", "model", "style"), "")}),
        ("caption_image", {"base64": DATA_URL, "model": "mini", "num_candidates": 3}),
        ("read_prompt", {"path": "coffee.jpg"}),
        ("compare_prompts", {"first": "a cat", "second": "a cat"}),
    )
    assert [tool.name for tool in listed.tools] == ["caption_image", "read_prompt", "compare_prompts"]
    assert all(tool.output_schema and tool.annotations.read_only_hint for tool in listed.tools)
    assert text(by_path) == prompt
    caption = by_path.structured_content
    assert (caption["text"], caption["model"]) == (prompt, "mini")
    assert caption["candidates"][0] == prompt
    assert len(by_data.structured_content["candidates"]) == 3
    assert text(carried) == "The picture carries no generation parameters."
    assert carried.structured_content == {"parameters": None}
    assert compared.structured_content == pytest.approx({"cosine": 1, "ratio": 1, "quick_ratio": 1})


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("caption_image", {}, "one of path, address and base64"),
        ("caption_image", {"path": "coffee.jpg", "base64": DATA}, "one of path"),
        ("caption_image", {"path": ""}, "one of path"),
        ("caption_image", {"path": "../../../README.md"}, "no file"),
        ("caption_image", {"path": "/etc/passwd"}, "no file"),
        ("caption_image", {"path": "LICENCES.md"}, "not a picture"),
        ("caption_image", {"path": "."}, "a folder"),
        ("caption_image", {"path": "a\0b"}, "no file"),
        ("caption_image", {"address": "http://127.0.0.1/cat.png"}, "not fetched here"),
        ("caption_image", {"address": "file:///etc/passwd"}, "begins with http"),
        ("caption_image", {"base64": "http://127.0.0.1/cat.png"}, "begins with http"),
        ("caption_image", {"base64": DATA, "model": "blip"}, "only mini"),
        ("caption_image", {"base64": DATA, "instruction": "Say {what}."}, "no use for instruction"),
        ("caption_image", {"base64": DATA, "style": "poem"}, "no style 'poem'"),
        ("caption_image", {"base64": DATA, "num_candidates": 1000}, "num_candidates"),
        ("caption_image", {"base64": DATA, "prompt": "a"}, "prompt: there is no such field"),
        ("read_prompt", {"base64": DATA, "model": "mini"}, "model: there is no such field"),
        ("compare_prompts", {"first": "a"}, "second"),
        ("compare_prompts", {"first": "a", "second": "b", "third": "c"}, "third: there is no such field"),
        ("compare_prompts", {"first": "a" * 100_000, "second": "b"}, "first"),
        ("delete_image", {}, "no tool of that name"),
    ],
)
def test_what_is_wrong_is_told_to_the_model(service: Service, name: str, arguments: dict[str, Any], words: str) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    answer = post(service, body)
    assert answer.status_code == 200
    result = answer.json()["result"]
    assert result["isError"]
    assert words in result["content"][0]["text"]


def post(service: Service, body: object) -> httpx.Response:
    return service.post("/mcp", body, Accept="application/json, text/event-stream")


def test_what_is_no_call(service: Service) -> None:
    for body in (3, [], {}, {"jsonrpc": "2.0"}):
        answer = post(service, body)
        assert answer.status_code == 400
        assert "error" in answer.json()
    answer = post(service, {"jsonrpc": "2.0", "id": 1, "method": "nonsense"})
    assert answer.json()["error"]["code"] == -32601
    assert service.get("/mcp").status_code == 405
    other = service.post("/mcp", {}, Host="evil.example")
    assert other.status_code == 421
    assert other.json()["error"]["message"]


def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").touch()
    (root / "inside.png").touch()
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "in.png").symlink_to(root / "inside.png")
    assert below(root, "in.png") == below(root, str(root / "inside.png")) == root / "inside.png"
    for path in ("out.png", "../secret.png", str(tmp_path / "secret.png"), "missing.png", "~/secret.png"):
        with pytest.raises(BadImage, match="There is no file"):
            below(root, path)
    with pytest.raises(BadInput, match="Files are not read here"):
        below(None, "inside.png")


def test_on_standard_input(tmp_path: Path, quick_python: str) -> None:
    """The user's own paths, wherever they lie; an address of this machine is not asked even so."""
    drawn, said = tmp_path / "drawn.png", tmp_path / "said.jsonl"
    drawn.write_bytes(png(parameters=A1111))
    line = f"{shlex.quote(quick_python)} -m captioner mcp --models mini | tee {shlex.quote(str(said))}"
    how = StdioServerParameters(command="sh", args=["-c", line], env=dict(os.environ))
    with open(tmp_path / "log.txt", "w+", encoding="utf-8") as log:
        _, caption, carried, refused = ask(
            stdio_client(how, errlog=log),
            ("caption_image", {"path": str(COFFEE)}),
            ("read_prompt", {"path": str(drawn)}),
            ("caption_image", {"address": "http://127.0.0.1:1/cat.png"}),
        )
    assert text(caption) == captioner.load("mini").generate(COFFEE).text
    assert text(carried).startswith(
        "a castle on a hill, (sharp focus:1.2)\nNegative prompt: blurry, low quality\nSteps"
    )
    assert carried.structured_content["parameters"]["seed"] == 1234567890
    assert refused.is_error
    assert "not a public address" in text(refused)
    answers = [json.loads(answer) for answer in said.read_text().splitlines()]
    assert {answer["jsonrpc"] for answer in answers} == {"2.0"}  # and nothing else was printed
    assert len(answers) >= 5


def test_what_is_no_message_is_told_and_answered(quick_python: str) -> None:
    """A line that is no message costs itself alone; an input that is cut off ends with status 2. Either way, and at
    once, all that was asked before is answered, but for what was cancelled."""
    start = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    read = {"name": "read_prompt", "arguments": {"path": str(COFFEE)}}
    asked = [(1, "ping", {}), (2, "initialize", start), (3, "tools/call", read), (4, "tools/call", read)]
    messages: list[dict[str, Any]] = [
        *({"jsonrpc": "2.0", "id": number, "method": method, "params": given} for number, method, given in asked),
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 4}},
    ]
    lines = ["hello", "", '{"id":1}', *map(json.dumps, messages), '{"jsonrpc":"2.0","id":2,"meth']
    command = [quick_python, "-m", "captioner", "mcp", "--models", "mini"]
    ended = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=60)
    answers = [json.loads(answer) for answer in ended.stdout.splitlines()]
    assert sorted(answer["error"]["code"] for answer in answers if "error" in answer) == [-32700, -32700, -32600]
    results = {answer["id"]: answer["result"] for answer in answers if "result" in answer}
    assert results[1] == {}
    assert results[3]["structuredContent"] == {"parameters": None}
    *lines, last = ended.stderr.splitlines()
    assert [line.startswith("captioner: A line of the input") for line in lines] == [True, True]
    assert (ended.returncode, last) == (2, "captioner: The input ends in the middle of a message.")
