"""Models of the Hub: fetched from a server on this machine, kept in a cache, and what is said when they cannot be."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from captioner.cli.main import app
from captioner.errors import MissingExtra, MissingModel
from captioner.files import hub
from tests.decoders import pictures

COMMIT = "0" * 40
FILE = "{repo_id}/resolve/{revision}/{filename}"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a fetch asks for. The owner of a repository says what is wrong with it."""

    folder: Path

    def do_GET(self) -> None:
        names = self.path.lstrip("/").split("?")[0].split("/")
        api = names[:2] == ["api", "models"]
        owner = names[2] if api else names[0]
        if owner == "nobody":
            self._answer(404, b"{}", "RepoNotFound")
        elif owner == "busy":
            self._answer(400, b"{}")
        elif api:
            files = self._files(owner)
            listed = [{"type": "file", "path": name, "size": size, "oid": "1" * 40} for name, size in files.items()]
            siblings = [{"rfilename": name, "size": size} for name, size in files.items()]
            info = {"id": "/".join(names[2:4]), "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            self._answer(200, json.dumps(listed if "tree" in names else info).encode())
        elif owner == "gated":
            self._answer(403, b"{}", "GatedRepo")
        else:
            name = "/".join(names[4:])
            self._answer(200, (self.folder / name).read_bytes(), etag=name.replace("/", "-"))

    do_HEAD = do_GET

    def _files(self, owner: str) -> dict[str, int]:
        if owner == "gguf":
            return {"config.json": 2, "model-q4.gguf": 9}
        if owner == "huge":
            return {"config.json": 2, "model.safetensors": 10**18}
        if owner == "tagger":
            return {"config.json": 2, "model.safetensors": 9, "model.onnx": 9, "selected_tags.csv": 9}
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.stat().st_size for path in paths}

    def _answer(self, status: int, body: bytes, error: str = "", etag: str = "x") -> None:
        self.send_response(status)
        headers = {"Content-Length": len(body), "X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "X-Error-Code": error}
        for name, value in headers.items():
            if value:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Hub,), {"folder": folder}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a Hub that can be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def online(cache: Path, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Hub on this machine whose models are all a tiny InstructBLIP."""
    folder = tiny_checkpoint("instructblip")
    with served(folder) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield folder


def test_a_model_is_fetched_with_all_its_parts(online: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    pictures(1)[0].save(tmp_path / "one.png")
    words = ["generate", str(tmp_path / "one.png"), "--max-new-tokens", "4", "--quiet", "--model"]
    fetched = CliRunner().invoke(app, [*words, "somebody/model"])
    assert fetched.exit_code == 0, fetched.output
    assert "Fetching somebody/model from the Hugging Face Hub" in fetched.stderr
    assert fetched.stdout == CliRunner().invoke(app, [*words, str(online)]).stdout
    again = CliRunner().invoke(app, [*words, "somebody/model"])  # from the cache, without a word
    assert (again.stdout, "Fetching" in again.stderr) == (fetched.stdout, False)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        ("nobody", r"no model 'nobody/model' on the Hugging Face Hub, or it is private: check the name, or log in"),
        (
            "gated",
            r"gated/model is gated: accept its terms on http://\S+/gated/model, then log in with `hf",
        ),
        ("busy", r"refuses busy/model \(status 400\)"),
        ("gguf", r"holds no weights in a form that is read here.*but config.json, model-q4.gguf"),
        ("huge", r"takes 1,000,000,000,000 MB, and \S+ has room for .*HF_HOME"),
    ],
)
def test_what_cannot_be_fetched(online: Path, owner: str, message: str, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(MissingModel, match=message) as refused:
        hub.hub_folder(f"{owner}/model")
    assert "\n" not in str(refused.value)


def test_a_tagger_is_not_fetched_without_its_extra(
    online: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r'tagger/model needs onnxruntime, .*: pip install "captioner\[tagger\]"'):
        hub.hub_folder("tagger/model")
    assert not cache.exists()
    assert capfd.readouterr().err == ""


def test_a_hub_that_does_not_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingModel, match=r"cannot be reached\. Check the network, or fetch it elsewhere"):
        hub.hub_folder("somebody/model")


def test_offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingModel, match="HF_HUB_OFFLINE is set"):
        hub.hub_folder("somebody/model")


def test_a_cache_that_is_no_folder(online: Path, cache: Path, capfd: pytest.CaptureFixture) -> None:
    cache.write_text("", encoding="utf-8")
    with pytest.raises(MissingModel, match=r"cannot be kept in \S+ \(Not a directory\). Set HF_HOME elsewhere"):
        hub.hub_folder("somebody/model")


def test_a_full_disk_is_named(cache: Path) -> None:
    with pytest.raises(MissingModel, match="No space left on device"):
        hub._explain("somebody/model", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_a_fetch_that_was_stopped_is_not_taken_for_a_model(cache: Path, index: str) -> None:
    """The index of weights in parts comes first; a part that it names may be missing."""
    repository = cache / "models--somebody--large"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    parts = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (snapshot / index).write_text(json.dumps({"weight_map": dict(zip("ab", parts, strict=True))}))
    (snapshot / parts[0]).write_bytes(b"")
    assert hub.cached_folder("somebody/large") is None
    (snapshot / parts[1]).write_bytes(b"")
    assert hub.cached_folder("somebody/large") == snapshot


def test_only_one_form_of_the_weights_is_fetched() -> None:
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "vocab.txt"]
    assert sorted(hub.files_to_fetch(files)) == ["config.json", "model.safetensors", "vocab.txt"]
    assert "pytorch_model.bin" in hub.files_to_fetch([f for f in files if f != "model.safetensors"])


def test_of_a_tagger_two_files_are_fetched() -> None:
    files = ["config.json", "model.onnx", "model.safetensors", "selected_tags.csv", "README.md"]
    assert sorted(hub.files_to_fetch(files)) == ["model.onnx", "selected_tags.csv"]
    assert "model.safetensors" in hub.files_to_fetch([file for file in files if file != "selected_tags.csv"])


def test_a_tagger_is_fetched(
    cache: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_checkpoint("tagger"), tmp_path / "tagger")
    (folder / "model.safetensors").write_bytes(b"\0" * 4_000_000)
    pictures(1)[0].save(tmp_path / "one.png")
    words = ["generate", str(tmp_path / "one.png"), "--quiet", "--model"]
    with served(folder) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{FILE}")
        fetched = CliRunner().invoke(app, [*words, "wd-tagger"])
    assert fetched.exit_code == 0, fetched.output
    assert "Fetching SmilingWolf/wd-swinv2-tagger-v3 from the Hugging Face Hub (0 MB)" in fetched.stderr
    assert fetched.stdout == CliRunner().invoke(app, [*words, str(folder)]).stdout
    snapshot = hub.cached_folder("SmilingWolf/wd-swinv2-tagger-v3")
    assert sorted(file.name for file in snapshot.iterdir()) == ["model.onnx", "selected_tags.csv"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = CliRunner().invoke(app, [*words, "SmilingWolf/wd-swinv2-tagger-v3"])
    assert (again.stdout, again.stderr) == (fetched.stdout, "")


def test_the_parts_of_a_sentence_transformers_model_are_fetched_too() -> None:
    parts = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin", "onnx/model.onnx"]
    files = ["model.safetensors", "pytorch_model.bin", "modules.json", *parts]
    wanted = hub.files_to_fetch(files, modules=True)
    assert sorted(wanted) == sorted(["model.safetensors", "modules.json", *parts[:3]])
    assert sorted(hub.files_to_fetch(files)) == ["model.safetensors", "modules.json"]


def test_weights_that_are_there_twice_are_fetched_once() -> None:
    parts = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    files = ["config.json", "model.safetensors.index.json", "consolidated.safetensors", *parts]
    assert sorted(hub.files_to_fetch(files)) == sorted(file for file in files if file != "consolidated.safetensors")
    assert "consolidated.safetensors" in hub.files_to_fetch(["consolidated.safetensors", "params.json"])
