"""--push-to-hub against a server of our own that speaks what huggingface_hub asks: what is sent, and every refusal."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from captioner.errors import BadInput, BadOutput
from training import blip, hub


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the Hub that an upload needs. Every file goes into the commit itself."""

    def do_GET(self) -> None:
        asks_who = self.path == "/api/whoami-v2"
        self._answer(200 if asks_who else 404, self.server.user if asks_who else {})

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(sent))
            self._answer(self.server.creates, {"url": f"{constants.ENDPOINT}/me/model", "id": "me/model"})
        elif self.path.endswith("/preupload/main"):
            files = [file["path"] for file in json.loads(sent)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer(200, {"files": [{"path": path, **regular} for path in files]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(200, {"commitUrl": f"{constants.ENDPOINT}/me/model/commit/1", "commitOid": "1"})
        else:
            self._answer(200, {})

    def _answer(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        token = {"role": "write"}
        running.user = {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": token}}
        running.made, running.files, running.creates = [], {}, 200
        address = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def train(tiny_checkpoint, pairs: Path, tmp_path: Path):
    def run(*options: str) -> Path:
        out = tmp_path / "run"
        where = ["--base", str(tiny_checkpoint("blip")), "--data", str(pairs), "--out", str(out)]
        blip.main([*where, "--samples", "0", "--max-steps", "1", *options])
        return out

    return run


def test_the_whole_model_is_sent(train, server: ThreadingHTTPServer) -> None:
    out = train("--push-to-hub", "me/model")
    assert server.made == [{"name": "model", "organization": "me"}]
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "curves.png"):
        assert server.files[name] == (out / name).read_bytes()
    assert not [name for name in server.files if name.startswith(("checkpoint-", "logs"))]


def test_a_failed_upload_leaves_the_model_and_says_how_to_go_on(train, server: ThreadingHTTPServer) -> None:
    server.creates = 403
    with pytest.raises(BadOutput, match="hf upload me/model"):
        train("--push-to-hub", "me/model")


def test_refusals_come_before_training(
    train, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, message in (("a/b/c", "no name of a model"), ("you/model", "as me or us, not as you")):
        with pytest.raises(BadInput, match=message):
            train("--push-to-hub", name)
    server.user["auth"]["accessToken"]["role"] = "read"
    with pytest.raises(BadInput, match="yours only reads"):
        train("--push-to-hub", "us/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match="cannot be asked who you are"):
        train("--push-to-hub", "me/model")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="hf auth login"):
        hub.check_login("me/model")
    assert not (tmp_path / "run").exists()
