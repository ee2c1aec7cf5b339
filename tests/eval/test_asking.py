"""How answers of models are kept, and what is said if something is wrong with them."""

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import captioner
from captioner.errors import BadOutput
from captioner.models.ensemble.ensemble import with_candidates
from captioner.text.embedding import text_embedder
from eval.asking import Answered, Asker, Settings
from eval.data import Pairs, read_pairs
from eval.entries import Entry
from tests.eval.reports import broken_model

COUNT = 6


@pytest.fixture
def pictures(tmp_path: Path) -> Pairs:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(COUNT):
        Image.new("RGB", (16, 16), (40 * number, 90, 10)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a fox number {number}")
    return read_pairs([str(folder)])


def embed(texts: list[str]) -> np.ndarray:
    """One number a text: its length."""
    return np.array([[float(len(text)), 1.0] for text in texts])


def asked(entry: Entry, pairs: Pairs, folder: Path, steps: list[int] | None = None, **settings) -> Answered:
    def track(loop, total, what):
        if steps is not None:
            steps.append(total)
        return loop

    return Asker([entry], pairs, folder, Settings(batch_size=2, **settings), embed, track).ask(entry)


def test_answers_are_matched_by_the_picture(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    entry, folder, steps = Entry("vit", str(tiny_checkpoint("direct"))), tmp_path / "answers", []
    whole = np.stack([answer.vector for answer in asked(entry, pictures, folder, steps).answers])
    file = folder / entry.file_name
    header, *lines = file.read_text().splitlines(keepends=True)
    stranger = json.dumps({**json.loads(lines[0]), "id": "stranger"}) + "\n"
    file.write_text("".join([header, *lines[:0:-1], "}{\n", stranger, lines[0], lines[0]]))
    again = asked(entry, pictures, folder, steps)
    np.testing.assert_array_equal(np.stack([answer.vector for answer in again.answers]), whole)
    assert steps == [3]
    assert again.notes == [f"{file}: 3 lines damaged or of no picture; left out, and asked again."]

    short = json.loads(lines[2]) | {"vector": "AAAA"}
    file.write_text("".join([header, *lines[:2], json.dumps(short) + "\n", *lines[3:]]))
    again = asked(entry, pictures, folder, steps)
    np.testing.assert_allclose(np.stack([answer.vector for answer in again.answers]), whole, atol=1e-6)
    assert steps == [3, 1]
    assert asked(entry, pictures, folder, steps).notes == []
    assert steps == [3, 1]


def test_a_full_disk_is_no_fault_of_a_model(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    entry, folder = Entry("vit", str(tiny_checkpoint("direct"))), tmp_path / "answers"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, limits[1]))  # the header and two answers
    try:
        with pytest.raises(BadOutput, match="is kept: put it right"):
            asked(entry, pictures, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    steps: list[int] = []
    assert asked(entry, pictures, folder, steps).failure is None
    assert steps == [2]  # the first batch was kept


def test_weights_that_are_no_numbers_are_warned_of(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    shutil.copytree(tiny_checkpoint("direct"), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    save_file(tensors, weights)
    answered = asked(Entry("vit", str(tmp_path / "model")), pictures, tmp_path / "answers")
    assert "hold NaN or infinite numbers" in answered.failure


def test_kept_answers_that_are_no_numbers_are_warned_of(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    entry, folder = Entry("vit", str(tiny_checkpoint("direct"))), tmp_path / "answers"
    assert asked(entry, pictures, folder).warning is None
    file = folder / entry.file_name
    header, first, *lines = file.read_text().splitlines(keepends=True)
    broken = json.loads(first)
    broken["vector"] = base64.b64encode(np.full(384, np.nan, "<f4")).decode()
    file.write_text("".join([header, json.dumps(broken) + "\n", *lines]))
    assert asked(entry, pictures, folder).warning.startswith("gives 1 of 6 pictures an embedding that is no number")


def test_what_a_captioner_expects_can_be_measured(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    blip = str(tiny_checkpoint("blip"))
    answered = asked(Entry("x", f"{blip}+expected"), pictures, tmp_path / "answers")
    assert answered.failure is None
    assert [answer.text for answer in answered.answers] == [None] * COUNT
    model = captioner.load(blip)
    images = [pictures.image(index) for index in range(COUNT)]
    expected = model.embed(images, with_candidates(model), 2, expected=True)
    np.testing.assert_allclose([answer.vector for answer in answered.answers], expected, atol=1e-4)
    failed = asked(Entry("x", f"{tiny_checkpoint('direct')}+expected"), pictures, tmp_path / "answers")
    assert "writes no text" in failed.failure


def test_a_tagger_is_asked_as_any_other_model(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    folder, steps = str(tiny_checkpoint("tagger")), []
    answered = asked(Entry("tags", folder), pictures, tmp_path / "answers", steps)
    texts = [
        prompt.text for prompt in captioner.load(folder).generate([pictures.image(index) for index in range(COUNT)])
    ]
    assert [answer.text for answer in answered.answers] == texts
    again = asked(Entry("tags", folder), pictures, tmp_path / "answers", steps)
    assert [answer.text for answer in again.answers] == texts
    assert steps == [COUNT // 2]
    expected = asked(Entry("x", f"{folder}+expected"), pictures, tmp_path / "answers")
    assert "gives one candidate. Leave it out" in expected.failure


@pytest.fixture
def ensembles(tmp_path: Path, tiny_checkpoint) -> Path:
    """A folder with the ensembles plain.json, norm.json, and nested.json of these."""
    blip, vit = str(tiny_checkpoint("blip")), str(tiny_checkpoint("direct"))
    members = [
        {"model": blip, "weight": 0.5},
        {"model": blip, "weight": 0.2, "expected": True},
        {"model": vit, "weight": 0.3, "norm": 7.0},
    ]
    for name in ("plain", "norm"):
        content = {"kind": "ensemble", "members": members, "by_norm": name == "norm"}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    inner = [{"model": "plain.json", "weight": 0.4}, {"model": "norm.json", "weight": 0.6}]
    (tmp_path / "nested.json").write_text(json.dumps({"kind": "ensemble", "members": inner, "by_norm": True}))
    return tmp_path


def asker(names: dict[str, str], pairs: Pairs, folder: Path, shown: list[tuple[str, int]]) -> Asker:
    """shown: is told which models are asked, and about how many batches."""

    def track(loop, total, what):
        shown.append((what, total))
        return loop

    entries = [Entry(label, name) for label, name in names.items()]
    return Asker(entries, pairs, folder, Settings(batch_size=2), text_embedder(None), track)


def vectors_of(answered: Answered) -> np.ndarray:
    assert answered.failure is None, answered.traceback
    return np.stack([answer.vector for answer in answered.answers])


def test_an_ensemble_is_made_of_what_its_members_say(
    pictures: Pairs, ensembles: Path, tmp_path: Path, tiny_checkpoint
) -> None:
    """Each model is asked about each picture once, in whatever order they are named."""
    members = {"b": str(tiny_checkpoint("blip")), "v": str(tiny_checkpoint("direct"))}
    whole = {name: str(ensembles / f"{name}.json") for name in ("nested", "norm", "plain")}
    shown: list[tuple[str, int]] = []
    names = whole | members
    asking = asker(names, pictures, tmp_path / "answers", shown)
    of = {entry.label: asking.ask(entry) for entry in asking.entries}
    assert sorted(shown) == [("b", 3), (f"{Path(members['b']).name} expected", 3), ("v", 3)]
    images = [pictures.image(index) for index in range(COUNT)]
    for label, name in whole.items():
        np.testing.assert_allclose(vectors_of(of[label]), captioner.load(name).embed(images, batch_size=2), atol=1e-5)
        assert {answer.text for answer in of[label].answers} == {None}
    spent = [answer.seconds for answer in of["b"].answers]
    assert all(mine.seconds > of_member for mine, of_member in zip(of["plain"].answers, spent, strict=True))

    again = asker(names, pictures, tmp_path / "answers", shown)  # as after a kill: nothing is left to be asked
    for label in whole:
        np.testing.assert_allclose(vectors_of(again.ask(Entry(label, names[label]))), vectors_of(of[label]), atol=1e-6)
    assert len(shown) == 3


def test_an_ensemble_goes_on_where_its_member_was_stopped(
    pictures: Pairs, ensembles: Path, tmp_path: Path, tiny_checkpoint
) -> None:
    names = {"v": str(tiny_checkpoint("direct")), "e": str(ensembles / "norm.json")}
    shown: list[tuple[str, int]] = []
    whole = vectors_of(asker(names, pictures, tmp_path / "answers", shown).ask(Entry("e", names["e"])))
    file = tmp_path / "answers" / Entry("v", "").file_name
    header, *lines = file.read_text().splitlines(keepends=True)
    unscaled = json.loads(lines[0])
    del unscaled["length"]  # as an earlier version kept it
    file.write_text("".join([header, json.dumps(unscaled) + "\n", *lines[1:4], lines[4][:40]]))
    asking = asker(names, pictures, tmp_path / "answers", shown)
    answered = asking.ask(Entry("e", names["e"]))
    assert asking.notes == []
    np.testing.assert_allclose(vectors_of(answered), whole, atol=1e-6)
    assert shown[3:] == [("v", 2)]


def test_a_member_that_fails_is_named(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    broken = broken_model(tmp_path / "broken")
    members = [{"model": "broken"}, {"model": str(tiny_checkpoint("direct"))}]
    (tmp_path / "e.json").write_text(json.dumps({"kind": "ensemble", "members": members}))
    answered = asked(Entry("e", str(tmp_path / "e.json")), pictures, tmp_path / "answers")
    assert answered.failure.startswith(f"Its member {broken} fails: ")
    assert answered.answers == []


def test_a_member_does_not_take_the_place_of_another_model(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    """One that is called as the member would be."""
    vit = tiny_checkpoint("direct")
    (tmp_path / "e.json").write_text(json.dumps({"kind": "ensemble", "members": [{"model": str(vit)}]}))
    shown: list[tuple[str, int]] = []
    names = {vit.name: str(tiny_checkpoint("resnet_lstm")), "e": str(tmp_path / "e.json")}
    for _ in range(2):
        asking = asker(names, pictures, tmp_path / "answers", shown)
        assert [asking.ask(entry).failure for entry in asking.entries] == [None, None]
    assert shown == [(vit.name, 3), (str(vit), 3)]


def test_members_that_are_called_alike_are_kept_apart(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    """Two runs' folders of one name: neither is asked again."""
    runs = [tmp_path / run / "best" for run in ("one", "two")]
    for run, family in zip(runs, ("direct", "resnet_lstm"), strict=True):
        shutil.copytree(tiny_checkpoint(family), run)
    members = [{"model": "one/best"}, {"model": "two/best"}]
    names = {name: str(tmp_path / f"{name}.json") for name in ("e", "f")}
    for file in names.values():
        Path(file).write_text(json.dumps({"kind": "ensemble", "members": members}))
    shown: list[tuple[str, int]] = []
    for _ in range(2):
        asking = asker(names, pictures, tmp_path / "kept", shown)
        e, f = (vectors_of(asking.ask(entry)) for entry in asking.entries)
        np.testing.assert_array_equal(e, f)
    assert shown == [("best", 3), (str(runs[1]), 3)]


def test_what_is_odd_about_a_members_answers_is_told_once(pictures: Pairs, tmp_path: Path, tiny_checkpoint) -> None:
    """Also of two ensembles that share the member."""
    members = [{"model": str(tiny_checkpoint("direct"))}]
    names = {name: str(tmp_path / f"{name}.json") for name in ("e", "f")}
    for file in names.values():
        Path(file).write_text(json.dumps({"kind": "ensemble", "members": members}))
    for _ in range(2):
        asking = asker(names, pictures, tmp_path / "kept", [])
        assert [asking.ask(entry).failure for entry in asking.entries] == [None, None]
        (file,) = (tmp_path / "kept").iterdir()
        file.write_text(file.read_text() + "}{\n")
    assert asking.notes == [f"{file}: 1 line damaged or of no picture; left out, and asked again."]


def test_a_baseline_without_an_index_says_how_to_make_one(pictures: Pairs, tmp_path: Path) -> None:
    for kind in ("nearest", "constant"):
        failed = asked(Entry("x", f"{kind}:{tmp_path / 'none'}"), pictures, tmp_path / "answers").failure
        assert "holds no index" in failed
        assert "captioner index build" in failed


def test_texts_of_our_own_tables_find_their_pictures(pictures: Pairs, tmp_path: Path) -> None:
    table = tmp_path / "said.jsonl"
    rows = [{"file": f"/elsewhere/{n}.png", "text": f"text {n}"} for n in (3, 1, 1, 0)]
    rows[2]["text"] = "the second of one picture"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answered = asked(Entry("said", str(table)), pictures, tmp_path / "answers")
    texts = [answer.text for answer in answered.answers]
    assert texts == ["text 0", "text 1", None, "text 3", None, None]
    assert np.isnan(answered.answers[2].vector).all()
    assert answered.notes == ["said: 1 row with the id of another; the first counts."]
    assert answered.warning is None
