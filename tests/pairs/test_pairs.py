"""The one reader of pairs: what it reads, what it leaves out and why, and what it says of data that are wrong."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from unicodedata import normalize

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from captioner.errors import BadCheckpoint, BadInput
from captioner.models.ensemble.ensemble import files_of
from captioner.pairs import layouts, provenance, sources
from captioner.pairs.fingerprint import fingerprint, picture_fingerprint
from captioner.pairs.layouts import LeftOut, ReadOptions
from captioner.pairs.provenance import Seen, TrainingData
from captioner.pairs.readable import opened
from captioner.pairs.sources import PairSource, absolute, parse


def picture(file: Path, colour: str = "red") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(file)
    return file


def marked_zip(file: Path, encrypted: bool, method: int) -> None:
    """Say in every header of a zip that its members are encrypted, or packed by such a method."""
    content = bytearray(file.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + flags] |= encrypted
            content[at + flags + 2] = method
            at = content.find(mark, at + 4)
    file.write_bytes(content)


def lines(file: Path, *rows: object) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read(folder: Path | str, **options) -> tuple[list[tuple[str, str]], list[str]]:
    """(name, text) of all records, and what was left out."""
    records = sources.read([folder], ReadOptions(**options))
    return [(record.name, record.text) for record in records], list(map(str, records.left_out))


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_captions_beside_the_pictures(tmp_path: Path) -> None:
    for name, file, text in (("a", "a.txt", "\ufeffred\n"), ("b", "b.caption", "blue"), ("c", "c.txt", " \n")):
        picture(tmp_path / "10_style" / (f"{name}.PNG" if name == "b" else f"{name}.png"))
        (tmp_path / "10_style" / file).write_text(text, encoding="utf-8")
    picture(tmp_path / "d.png")
    picture(tmp_path / "d-masklabel.png")
    picture(tmp_path / "e.png")
    (tmp_path / "e.txt").write_bytes("Löwe".encode("latin-1"))
    records, left_out = read(tmp_path)
    assert records == [("10_style/a.png", "red"), ("10_style/b.PNG", "blue")]
    assert left_out == [
        "d.png: without a caption",
        "e.png: e.txt is not UTF-8. Save it as UTF-8.",
        "10_style/c.png: without a caption",
    ]


@pytest.mark.parametrize("layout", ["table", "sidecars", "parameters"])
def test_a_subfolder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    picture(tmp_path / "a.png")
    if layout == "table":
        lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "a cat"})
    elif layout == "sidecars":
        (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "closed").mkdir()
    really_list = os.scandir

    def listing(folder: str):
        if os.path.basename(folder) == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return really_list(folder)

    monkeypatch.setattr(os, "scandir", listing)  # root may list every folder
    if layout == "parameters":
        with pytest.raises(BadInput, match=r"\(1 picture seen\)\. closed: cannot be read \(Permission denied\)\."):
            read(tmp_path)
    else:
        assert read(tmp_path) == ([("a.png", "a cat")], ["closed: cannot be read (Permission denied)"])


def test_a_table_may_have_its_pictures_in_images(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "a"}, {"file_name": "gone.png", "text": "b"})
    records = list(sources.read([tmp_path]))
    [(kept, [image])] = opened(records, 8, unreadable := [])
    assert ([record.text for record in kept], image.size) == (["a"], (4, 4))
    assert [one.name for one in unreadable] == ["images/gone.png"]


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_written_in_the_other_way(tmp_path: Path, on_disk: str, in_table: str) -> None:
    picture(tmp_path / "images" / normalize(on_disk, "Café 가.png"))
    names = [normalize(in_table, "Café 가.png"), "é gone.png"]
    lines(tmp_path / "metadata.jsonl", *({"file_name": name, "text": "a"} for name in names))
    (_, [image]), *_ = opened(sources.read([tmp_path]), 8, unreadable := [])
    assert image.size == (4, 4)
    assert [one.name for one in unreadable] == ["images/é gone.png"]


def test_pictures_are_named_as_seen_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "set" / "sub").mkdir(parents=True)
    files = ("./a.png", "../b.png", "x/../c.png", f"{tmp_path}/set/d.png", f"{tmp_path}/e.png")
    for folder in (tmp_path / "set", tmp_path / "set" / "sub"):
        lines(folder / "metadata.jsonl", *({"file_name": file, "text": "a"} for file in files))
    names = [name for name, _ in read(tmp_path / "set")[0]]
    below = ["sub/a.png", "b.png", "sub/c.png", "d.png", "../e.png"]
    assert names == ["a.png", "../b.png", "c.png", "d.png", "../e.png", *below]


def test_rubbish_bins_and_what_macs_put_beside_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", ".Trash-1000/files/b.png", "c/._d.png"):
        picture(tmp_path / name).with_suffix(".txt").write_text("red")
    (tmp_path / ".Trashes").mkdir()
    lines(tmp_path / ".Trashes" / "metadata.jsonl", {"file_name": "gone.png", "text": "blue"})
    (tmp_path / "._a.parquet").touch()
    assert read(tmp_path) == ([("a.png", "red")], [])


def test_captions_none_of_which_can_be_read_are_no_missing_ones(tmp_path: Path) -> None:
    """As an editor of Windows may have saved them."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png").with_suffix(".txt").write_bytes("Löwe".encode("cp1252"))
    with pytest.raises(BadInput, match=r"\(2 pictures seen\)\. b\.png: b\.txt is not UTF-8\. Save it as UTF-8\. Add"):
        read(tmp_path)


def test_the_competition_with_pictures_in_images_or_beside(tmp_path: Path) -> None:
    for folder in (tmp_path / "a" / "images", tmp_path / "b"):
        picture(folder / "x1.jpg")
    for folder in (tmp_path / "a", tmp_path / "b"):
        (folder / "prompts.csv").write_text("imgId,prompt\nx1,a cat\nx2,a dog\nx3,\n")
    assert read(tmp_path / "a") == (
        [("images/x1.jpg", "a cat"), ("images/x2.png", "a dog")],
        ["x3: without a caption"],
    )
    assert read(tmp_path / "b")[0] == [("x1.jpg", "a cat"), ("x2.png", "a dog")]
    with pytest.raises(BadInput, match=r"has no prompts\.csv"):
        read(f"kaggle:{tmp_path / 'a' / 'images'}")


def karpathy(folder: Path) -> Path:
    splits = {"a": "train", "b": "restval", "c": "val", "d": "test"}
    images = []
    for number, (name, split) in enumerate(splits.items()):
        picture(folder / "val2014" / f"{name}.jpg")
        sentences = [{"raw": f"{name} first"}, {"raw": f"{name} second"}]
        entry = {"filepath": "val2014", "filename": f"{name}.jpg", "split": split, "sentences": sentences}
        images.append({**entry, "cocoid": 100 + number, "imgid": number})
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder / "dataset_coco.json"


def test_karpathys_parts_of_coco(tmp_path: Path) -> None:
    file = karpathy(tmp_path)
    records = list(sources.read([f"coco:{file}:train"]))
    assert [record.text for record in records] == ["a first", "a second", "b first", "b second"]
    assert [record.id for record in records] == ["100", "100", "101", "101"]
    assert all(Path(record.image).is_file() for record in records)
    assert [text for _, text in read(f"coco:{file}:test@0.9999")[0]] == ["d first", "d second"]
    for unsaid in (file, tmp_path, f"coco:{file}:nothing"):  # nobody trains on the test part by accident
        with pytest.raises(BadInput, match=r"parts train \(2\), val \(1\), test \(1\). Name one of them: coco:"):
            read(unsaid)


def test_one_of_two_coco_files_without_its_pictures(tmp_path: Path) -> None:
    for part in ("train2017", "val2017"):
        content = {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "annotations": [{"image_id": 1, "caption": f"of {part}"}, {"image_id": 2, "caption": "of nothing"}],
        }
        (tmp_path / f"captions_{part}.json").write_text(json.dumps(content))
    picture(tmp_path / "val2017" / "a.jpg")
    records, left_out = read(tmp_path)
    assert records == [("a.jpg", "of val2017")]
    assert "captions_train2017.json names 'a.jpg', which is in none of" in left_out[0]
    assert left_out[1] == "2: that the captions name and the list of pictures does not"
    (tmp_path / "val2017" / "a.jpg").unlink()
    with pytest.raises(BadInput, match=r"captions_train2017\.json names"):
        read(tmp_path)


def test_a_caption_of_a_picture_that_cannot_be(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": [1], "caption": "of a list"}]}
    (tmp_path / "captions_x.json").write_text(json.dumps(content))
    assert list(layouts.read_coco(tmp_path / "captions_x.json", ReadOptions())) == [
        LeftOut("[1]", "that the captions name and the list of pictures does not")
    ]


@pytest.mark.parametrize("name", ["encrypted", "packed in a way of its own"])
def test_a_part_of_diffusiondb_that_cannot_be_unpacked(tmp_path: Path, name: str) -> None:
    part = tmp_path / "part-000001.zip"
    with zipfile.ZipFile(part, "w") as archive:
        archive.writestr("part-000001.json", json.dumps({"a.png": {"p": "a cat"}}))
    marked_zip(part, encrypted=name == "encrypted", method=0 if name == "encrypted" else 99)
    with pytest.raises(BadInput, match=r"part-000001\.zip is no whole part of DiffusionDB"):
        read(part)


def test_parquet_rows_that_are_no_pairs_are_left_out(tmp_path: Path) -> None:
    content = picture(tmp_path / "a.png").read_bytes()
    table = pyarrow.table({"image": [content, None, content, content], "text": ["a", "b", None, "d"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    records = sources.read([tmp_path / "t.parquet"])
    assert [(r.id, r.name, r.image == content) for r in records] == [
        ("0", "t.parquet:0", True),
        ("3", "t.parquet:3", True),
    ]
    assert [str(one) for one in records.left_out] == [
        "t.parquet:1: without a picture",
        "t.parquet:2: without a caption",
    ]
    assert records.total() == 4


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x"], "text": [5]}, r"t\.parquet, row 0: the caption is 5, not a text"),
        ({"image": [5], "text": ["a"]}, r"t\.parquet, row 0: the picture is int"),
        ({"image": [b"x"], "label": ["a"]}, "no caption column 'text' or 'prompt' or 'caption'"),
    ],
)
def test_parquet_of_other_things(columns: dict, message: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=message):
        read(tmp_path / "t.parquet")


def test_rows_of_parquet_without_an_id_or_a_path(tmp_path: Path) -> None:
    content = picture(tmp_path / "a.png").read_bytes()
    images = pyarrow.array([{"bytes": content}, {"bytes": content}, {"bytes": None}])
    table = pyarrow.table({"image": images, "text": ["a", "b", "c"], "id": ["x", None, "z"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    records = sources.read([tmp_path / "t.parquet"])
    assert [record.id for record in records] == ["x", "1"]
    assert [str(one) for one in records.left_out] == ["t.parquet:2: without a picture"]


def test_a_parquet_file_that_is_cut_off(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"x"] * 99, "text": ["a"] * 99}), tmp_path / "t.parquet")
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"t\.parquet is no parquet file, or is cut off"):
        read(tmp_path / "t.parquet")


# --- tables that are not what they should be --------------------------------------------------------------------------

GOOD = b'{"file_name": "a.png", "text": "a cat"}\n\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"file_name": "b.png", "text": "Löwe"}'.encode("latin-1"),
            "line 3: this is not UTF-8. Save",
        ),
        (b"5", "line 3: 5 is no JSON object"),
        (b"[1, 2]", r"line 3: \[1, 2\] is no JSON object"),
        (b'"\x7f"', r"line 3: \"\\x7f\" is no JSON object"),
        (b"{", "line 3: this is no JSON"),
        (b"[" * 100_000, "line 3: this is no JSON"),
        (b'{"file_name": "b.png", "text": 5}', "line 3: the caption is 5, not a text. Write it in quotes"),
        (b'{"file_name": "b.png", "text": {"en": "x"}}', "line 3: the caption is {'en': 'x'}, not a text"),
        (b'{"file_name": "b.png", "text": [5]}', "line 3: the caption is 5"),
        (b'{"file_name": "b.png", "text": "\\ud83d"}', "line 3: the caption holds half a character"),
        (b'{"file_name": "b.png"}', r"metadata\.jsonl, line 3 has no caption column"),
    ],
)
def test_lines_of_json_that_are_no_rows_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(GOOD + content)
    with pytest.raises(BadInput, match=message):
        read(tmp_path)


@pytest.mark.parametrize(("name", "head"), [("metadata.csv", b"file_name,text\n"), ("prompts.csv", b"imgId,prompt\n")])
def test_lines_of_csv_that_are_no_rows_are_named(name: str, head: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(head + 'a.png,"a\ncat"\nb.png,ein Löwe\n'.encode("latin-1"))
    with pytest.raises(BadInput, match=rf"{name}, line 4: this is not UTF-8"):
        read(tmp_path)
    limit = csv.field_size_limit(1000)
    try:
        (tmp_path / name).write_bytes(head + b"a.png," + b"x" * 1001)
        with pytest.raises(BadInput, match=rf"{name}, line 2: this is no CSV"):
            read(tmp_path)
    finally:
        csv.field_size_limit(limit)


def test_a_caption_with_a_comma_is_not_cut_off(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat,\nb.png,a dog, big\n")
    with pytest.raises(BadInput, match=r"metadata\.csv, line 3: there are more cells than columns"):
        read(tmp_path)
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,a cat,\nb.png,"a dog, big"\n')
    assert read(tmp_path) == ([("a.png", "a cat"), ("b.png", "a dog, big")], [])


def test_a_folder_without_coco_captions_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no captions_\*\.json, which COCO's layout needs"):
        read(f"coco:{tmp_path}")


@pytest.mark.parametrize("names", [("train-0", "test-0"), ("data/train-0", "data/test-0"), ("train/0", "test/0")])
def test_parts_of_parquet_by_their_names(tmp_path: Path, names: tuple[str, str]) -> None:
    content = picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").unlink()
    for name in names:
        (tmp_path / f"{name}.parquet").parent.mkdir(exist_ok=True)
        table = pyarrow.table({"image": [content], "text": [f"of {name}"]})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    for name, split in zip(names, ("train", "test"), strict=True):
        assert [text for _, text in read(f"parquet:{tmp_path}", split=split)[0]] == [f"of {name}"]
    with pytest.raises(BadInput, match="has no parquet file of the split 'validation'"):  # not: all of them
        read(f"parquet:{tmp_path}", split="validation")


def test_rows_without_a_picture_or_a_caption_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\nb.png\n,a dog\nc.png,  \n")
    records, left_out = read(tmp_path)
    assert records == [("a.png", "a cat")]
    assert left_out == [
        "b.png: without a caption",
        f"{tmp_path / 'metadata.csv'}, line 4: without a picture",
        "c.png: without a caption",
    ]
    lines(tmp_path / "metadata.jsonl", {"file_name": ["a.png"], "text": "x"}, {"file_name": 7, "text": ["y", "z"]})
    (tmp_path / "metadata.csv").unlink()
    assert read(tmp_path) == ([("7", "y")], [f"{tmp_path / 'metadata.jsonl'}, line 1: without a picture"])


def test_names_and_files_that_are_meant_to_harm(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("a cat", encoding="utf-8")
    picture(tmp_path / "b.png")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "b.caption").write_text("b")
    assert read(tmp_path) == ([("b.png", "b")], [r"\xff.png: whose name is not UTF-8"])
    os.mkfifo(tmp_path / "metadata.jsonl")
    with pytest.raises(BadInput, match=r"metadata\.jsonl is not a file"):
        read(tmp_path)


def test_a_line_without_end(tmp_path: Path) -> None:
    with (tmp_path / "metadata.jsonl").open("wb") as file:
        file.truncate(10_000_000_000)  # sparse: nothing is on the disk
    with pytest.raises(BadInput, match=r"metadata\.jsonl, line 1 is longer than 16,000,000 characters"):
        read(tmp_path)


def test_a_table_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").mkdir()
    with pytest.raises(BadInput, match=r"prompts\.csv"):
        read(tmp_path)


# --- sources ----------------------------------------------------------------------------------------------------------


def test_what_specs_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse("coco:/a/dataset_coco.json:val@2") == PairSource("coco", "/a/dataset_coco.json", 2.0, "val")
    assert parse("coco:/a/b") == PairSource("coco", "/a/b")
    assert parse("hub:org/name:config@0.5") == PairSource("hub", "org/name:config", 0.5)
    assert absolute("hub:org/name@0.5") == "hub:org/name@0.5"
    assert parse(absolute("coco:a.json:val@2")) == PairSource("coco", os.path.abspath("a.json"), 2.0, "val")
    assert parse(absolute("parts/*.parquet")) == PairSource("parquet", os.path.abspath("parts/*.parquet"))
    picture(tmp_path / "here" / "a.png")
    monkeypatch.chdir(tmp_path / "here")
    assert parse(".").name == "here"


def test_weights_count_records_and_name_what_is_left_out_once(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "set" / f"{number}.png")
        (tmp_path / "set" / f"{number}.txt").write_text(f"text {number}" if number else "")
    records = sources.read([f"{tmp_path}/set@2", f"folder:{tmp_path}/set"])
    assert [record.text for record in records] == ["text 1", "text 2", "text 3"] * 3
    assert [one.name for one in records.left_out] == ["0.png", "0.png"]  # once for each source that was named
    assert len(list(records)) == records.total() == 9
    assert len(records.left_out) == 2  # not added to by the second pass


def test_what_holds_no_caption_says_how_many_pictures_were_seen(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    with pytest.raises(BadInput, match=r"no picture with a caption \(3 pictures seen\)\. Add a \.txt beside"):
        read(tmp_path)
    with pytest.raises(BadInput, match=r"hub:nobody/nothing"):
        parse("nobody/nothing")


def test_left_out_in_sentences() -> None:
    left_out = [LeftOut(f"{n}.png", layouts.NO_CAPTION, source="set") for n in range(7)]
    left_out += [LeftOut("\x1b[31mx.png", layouts.UNREADABLE, "it is cut off", "other")]
    assert layouts.summaries(left_out) == [
        "set: 7 pictures without a caption left out: 0.png, 1.png, 2.png, 3.png, 4.png ….",
        r"other: 1 picture that cannot be read left out: \x1b[31mx.png.",
    ]
    row = LeftOut("metadata.csv, line 4", layouts.NO_PICTURE, source="set", noun="row")
    assert layouts.summaries([row]) == ["set: 1 row without a picture left out: metadata.csv, line 4."]
    assert layouts.summaries(left_out[:1], named=False) == ["set: 1 picture without a caption left out."]
    assert str(left_out[-1]) == r"\x1b[31mx.png: it is cut off"


def test_a_data_set_without_a_name_is_told() -> None:
    with pytest.raises(BadInput, match=r"^hub: names no data set"):
        read("hub:")


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("it would try for a minute"))
    with pytest.raises(BadInput, match="hub:no-org/no-set cannot be loaded: the Hugging Face Hub does not answer"):
        read("hub:no-org/no-set")


def test_reading_imports_neither_torch_nor_datasets(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a cat")
    code = (
        "import sys\nfrom captioner.pairs import provenance, readable, sources\n"
        "print(len(list(readable.opened(sources.read([sys.argv[1]]), 8, []))))\n"
        "print(sorted({'torch', 'datasets', 'training', 'eval'} & set(sys.modules)))\n"
    )
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == ["1", "[]"]


# --- provenance -------------------------------------------------------------------------------------------------------


def test_fingerprints_are_those_of_lists_that_were_kept() -> None:
    """Of models that are elsewhere by now."""
    assert fingerprint("A  Red\nFOX, straße") == fingerprint("a red fox, strasse ") == "b2f7c89d034206f9"
    assert len(fingerprint("half a pair: \ud800")) == 16
    lying, standing = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert picture_fingerprint(lying) != picture_fingerprint(standing)


def test_overlaps_by_name_by_prompt_and_by_picture() -> None:
    image = picture_fingerprint(Image.new("RGB", (4, 4)))
    seen = [Seen(image, ("a cat", "A  CAT ")), Seen("0" * 64, ("a dog",))]
    learnt = TrainingData(("coco:/x/dataset_coco.json:train@2",), frozenset({fingerprint("a cat"), image[:16]}))
    assert provenance.overlaps(learnt, [" X/dataset_coco.json"], seen) == [
        "it names x/dataset_coco as training data",
        "1 of the 2 pictures are in its training data",
        "1 of the 2 prompts are in its training data",
    ]
    assert provenance.overlaps(learnt, ["elsewhere"], [Seen("1" * 64, ("a fox",))]) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("training_data.json", '{"sources": 5}'),
        ("training_data.json", '{"fingerprints": {"a": 1}}'),
        ("README.md", "---\ndatasets: 5\n---\n"),
    ],
)
def test_training_data_that_is_no_list_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadCheckpoint, match="is no list"):
        provenance.trained_on([tmp_path])
    (tmp_path / name).write_text("{}" if name.endswith(".json") else "---\ndatasets:\n---\n")
    assert provenance.trained_on([tmp_path]) == TrainingData()


def test_an_ensemble_learnt_from_what_its_members_did(tmp_path: Path) -> None:
    for name in ("member", "index"):
        (tmp_path / name).mkdir()
    whole = "0123456789abcdef" * 4
    (tmp_path / "member" / "config.json").write_text('{"model_type": "blip"}')
    (tmp_path / "member" / "training_data.json").write_text(json.dumps({"sources": ["a"], "fingerprints": [whole]}))
    (tmp_path / "member" / "README.md").write_text("---\ndatasets: b\n---\n")
    (tmp_path / "index" / "index.json").write_text('{"data": ["c"]}')
    pyarrow.parquet.write_table(pyarrow.table({"prompts": ["a cat"]}), tmp_path / "index" / "prompts.parquet")
    (tmp_path / "both.json").write_text('{"kind": "ensemble", "members": [{"model": "member"}, {"model": "index"}]}')
    learnt = provenance.trained_on(files_of(str(tmp_path / "both.json")))
    assert learnt == TrainingData(("a", "b", "c"), frozenset({whole[:16], fingerprint("a cat")}))


def test_the_bundled_model_says_what_it_learnt_from() -> None:
    learnt = provenance.trained_on(files_of("mini"))
    assert learnt.sources
    assert len(learnt.fingerprints) > 100
