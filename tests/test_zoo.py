"""Names, folders and Hub ids find the right loader, or say what to do."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from captioner import zoo
from captioner.errors import BadCheckpoint, MissingModel


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cache(hub: Path, identifier: str, model_type: str) -> Path:
    """A snapshot in the cache's real layout."""
    repository = hub / f"models--{identifier.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    (snapshot / "config.json").write_text(json.dumps({"model_type": model_type}))
    (snapshot / "model.safetensors").write_bytes(b"")
    return snapshot


def checkpoint(folder: Path, **config) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("model_type", "module"), [*zoo.ARCHITECTURES.items(), ("git", "hub")])
def test_a_folder_is_known_by_its_model_type(tmp_path: Path, model_type: str, module: str) -> None:
    found = zoo.resolve(str(checkpoint(tmp_path / "run", model_type=model_type)))
    assert (found.module, found.folder) == (module, tmp_path / "run")
    assert found.speaks is (module not in ("direct", "knn", "ensemble"))


def test_an_index_an_ensemble_and_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text("{}")
    assert zoo.resolve(str(tmp_path / "index")).module == "knn"

    (tmp_path / "mine.json").write_text('{"kind": "ensemble"}')
    assert zoo.resolve(str(tmp_path / "mine.json")).module == "ensemble"

    base = checkpoint(tmp_path / "base", model_type="blip")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    found = zoo.resolve(str(tmp_path / "adapter"))
    assert (found.module, found.folder) == ("blip", tmp_path / "adapter")


@pytest.mark.parametrize("adapter", ["run", "run/checkpoint-3"])
def test_an_adapter_finds_the_base_that_its_run_left(adapter: str, tmp_path: Path) -> None:
    folder, base = tmp_path / adapter, tmp_path / "run" / "base"
    for place in (folder, base):
        place.mkdir(parents=True, exist_ok=True)
    (base / "config.json").write_text(json.dumps({"model_type": "blip"}))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base"}))
    assert zoo.base_of(folder).folder.resolve() == base


def test_hub_ids_come_from_the_cache(hub_cache: Path) -> None:
    snapshot = cache(hub_cache, "Salesforce/blip-image-captioning-base", "blip")
    assert zoo.resolve("blip") == zoo.Resolved("blip", "blip", snapshot)
    assert zoo.resolve("Salesforce/blip-image-captioning-base").folder == snapshot
    assert zoo.resolve("hub:Salesforce/blip-image-captioning-base").module == "hub"
    assert zoo.default() == "blip"
    row = next(row for row in zoo.listing() if row.name == "blip")
    assert row.where == str(snapshot)
    assert row.bytes


def test_what_is_missing_says_what_to_do(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingModel, match="HF_HUB_OFFLINE"):
        zoo.resolve("blip")
    with pytest.raises(MissingModel, match="did you mean 'blip'"):
        zoo.resolve("blipp")
    with pytest.raises(MissingModel, match=r"training\.resnet_lstm"):
        zoo.resolve("resnet-lstm")
    monkeypatch.setattr(zoo, "BUNDLED", tmp_path / "nothing")
    with pytest.raises(MissingModel, match="--model blip"):
        zoo.default()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{broken", "cannot be read as JSON"),
        ("config.json", "[]", "JSON object"),
        ("notes.txt", "hello", "no config.json .*notes.txt"),
    ],
)
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadCheckpoint, match=message):
        zoo.resolve(str(tmp_path))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"kind": "report"}')
    with pytest.raises(BadCheckpoint, match="ensemble"):
        zoo.resolve(str(tmp_path / "report.json"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:", "hub: names no model"),
        ("hub:../x", "no folder '../x', and a Hub id is of the form ORG/NAME"),
        ("nearest:runs/index", "No model 'nearest:runs/index'"),
        ("", "No model ''"),
        ("x" * 300 + "/y", "No model"),
        ("a\0b/c", "No model"),
        ("http://localhost:1234/v1", "say openai:http://localhost:1234/v1#MODEL"),
        ("BLIP", "did you mean 'blip'"),
        ("Blip-Large", "did you mean 'blip-large'"),
        ("runs/nope", "There is no folder runs/nope; as a model of the Hub it is not in the local cache"),
        ("https://huggingface.co/Somebody/model/tree/main", "^There is no folder Somebody/model"),
    ],
)
def test_names_that_lead_nowhere(name: str, message: str, hub_cache: Path) -> None:
    with pytest.raises(MissingModel, match=message):
        zoo.resolve(name)


def test_the_address_of_a_page_on_the_hub_is_its_model(hub_cache: Path) -> None:
    snapshot = cache(hub_cache, "Somebody/model", "blip")
    for address in ("https://huggingface.co/Somebody/model", "http://hf.co/Somebody/model/tree/main?x=1"):
        assert zoo.resolve(address).folder == snapshot
        assert zoo.resolve(f"hub:{address}").folder == snapshot


def test_a_part_of_a_model_is_answered_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xd0")
    with pytest.raises(BadCheckpoint, match=f"is a part of a model: name its folder, {tmp_path}"):
        zoo.resolve(str(tmp_path / "adapter_model.safetensors"))
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    with pytest.raises(BadCheckpoint, match=r"name its folder|name a checkpoint folder"):
        zoo.resolve(str(tmp_path / "rows.jsonl"))
