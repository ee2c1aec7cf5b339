"""Every layout gives the same rows; what is wrong with the data is said."""

import csv
import json
import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from captioner.errors import BadInput
from captioner.pairs.layouts import LeftOut
from captioner.pairs.readable import opened
from captioner.pairs.sources import parse, read
from training.data.readable import ReadableRows, readable
from training.data.sources import load_pairs

COLOURS = {"a": "red", "b": "green", "c": "blue"}


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def png(colour: str = "red") -> bytes:
    data = BytesIO()
    Image.new("RGB", (4, 4), colour).save(data, "PNG")
    return data.getvalue()


def pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, colour in COLOURS.items():
        (folder / f"{name}.png").write_bytes(png(colour))
    return folder


def jsonl(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def with_metadata_jsonl(folder: Path) -> Path:
    jsonl(pictures(folder) / "metadata.jsonl", [{"file_name": f"{n}.png", "text": c} for n, c in COLOURS.items()])
    return folder


def with_metadata_csv_in_a_subfolder(folder: Path) -> Path:
    pictures(folder / "train")
    with (folder / "train" / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "prompt"), *((f"{n}.png", c) for n, c in COLOURS.items())])
    return folder


def with_sidecars(folder: Path) -> Path:
    for name, colour in COLOURS.items():
        (pictures(folder) if name == "a" else folder).joinpath(f"{name}.txt").write_text(f"{colour}\n")
    return folder


def with_embedded_pictures(folder: Path) -> Path:
    folder.mkdir()
    cells = [{"bytes": png(colour), "path": None} for colour in COLOURS.values()]
    parquet.write_table(pa.table({"image": cells, "prompt": list(COLOURS.values())}), folder / "train-0.parquet")
    return folder


def with_bare_bytes(folder: Path) -> Path:
    folder.mkdir()
    table = pa.table({"image": [png(c) for c in COLOURS.values()], "caption": [[c, "other"] for c in COLOURS.values()]})
    parquet.write_table(table, folder / "any.parquet")
    return folder


def as_kaggle(folder: Path) -> Path:
    pictures(folder / "images")
    with (folder / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("imgId", "prompt"), *COLOURS.items()])
    return folder


def as_coco(folder: Path) -> Path:
    pictures(folder / "val2017")
    (folder / "annotations").mkdir()
    content = {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(COLOURS)],
        "annotations": [{"image_id": i, "caption": colour} for i, colour in enumerate(COLOURS.values())],
    }
    (folder / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    return folder


def prompts_of_part() -> str:
    return json.dumps({f"{name}.png": {"p": colour, "se": 1, "c": 7.0} for name, colour in COLOURS.items()})


def as_diffusiondb_zip(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    with zipfile.ZipFile(folder / "images" / "part-000001.zip", "w") as part:
        for name, colour in COLOURS.items():
            part.writestr(f"{name}.png", png(colour))
        part.writestr("part-000001.json", prompts_of_part())
    return folder


def as_diffusiondb_folder(folder: Path) -> Path:
    (pictures(folder / "part-000001") / "part-000001.json").write_text(prompts_of_part())
    return folder


LAYOUTS = [
    with_metadata_jsonl,
    with_metadata_csv_in_a_subfolder,
    with_sidecars,
    with_embedded_pictures,
    with_bare_bytes,
    as_kaggle,
    as_coco,
    as_diffusiondb_zip,
    as_diffusiondb_folder,
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("make", LAYOUTS)
def test_every_layout_gives_the_same_rows(make, streaming: bool, tmp_path: Path) -> None:
    rows = list(load_pairs([make(tmp_path / "data")], streaming=streaming))
    assert [row["text"] for row in rows] == list(COLOURS.values())
    assert [row["image"].convert("RGB").getpixel((0, 0)) for row in rows] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert all(set(row) == {"image", "text", "id", "source"} and row["source"] == "data" for row in rows)
    assert len({row["id"] for row in rows}) == 3


@pytest.mark.parametrize("make", LAYOUTS)
def test_the_index_reads_what_the_training_reads(make, tmp_path: Path) -> None:
    folder = make(tmp_path / "data")
    records = list(read([folder]))
    rows = load_pairs([folder])
    assert [(r.text, r.id, r.source) for r in records] == [(r["text"], r["id"], r["source"]) for r in rows]
    [(_, images)] = opened(records, 8, [])
    assert [image.tobytes() for image in images] == [row["image"].convert("RGB").tobytes() for row in rows]


@pytest.mark.parametrize("make", LAYOUTS)
def test_readable_rows_open_every_layout(make, tmp_path: Path) -> None:
    rows = ReadableRows(load_pairs([make(tmp_path / "data")]))
    assert [rows[i]["image"].getpixel((0, 0)) for i in range(3)] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert rows.skipped == []


def test_parquet_by_file_by_pattern_and_by_split(tmp_path: Path) -> None:
    folder = with_embedded_pictures(tmp_path / "data")
    one = pa.table({"image": [{"bytes": png(), "path": None}], "text": ["held back"], "id": ["7"], "source": ["there"]})
    parquet.write_table(one, folder / "validation-0.parquet")
    assert list(load_pairs([folder])["text"]) == list(COLOURS.values())
    for validation in (load_pairs([folder / "validation-0.parquet"]), load_pairs([f"{tmp_path}/**/val*.parquet"])):
        assert [validation[0][column] for column in ("text", "id", "source")] == ["held back", "7", "there"]
    assert list(load_pairs([folder], split="validation")["text"]) == ["held back"]


def test_a_data_set_by_name(tmp_path: Path) -> None:
    folder = with_embedded_pictures(tmp_path / "data")  # `datasets` loads a folder as it loads a name of the Hub
    assert list(load_pairs([f"hub:{folder}"])["text"]) == list(COLOURS.values())
    with pytest.raises(BadInput, match="validation"):
        load_pairs([f"hub:{folder}"], split="validation")


def test_coco_gives_a_row_for_every_caption(tmp_path: Path) -> None:
    folder = as_coco(tmp_path / "data")
    file = folder / "annotations" / "captions_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"].append({"image_id": 0, "caption": "crimson"})
    file.write_text(json.dumps(content))
    rows = load_pairs([f"coco:{file}"])
    assert list(rows["text"]) == [*COLOURS.values(), "crimson"]
    assert list(rows["id"]) == ["0", "1", "2", "0"]


def test_diffusiondb_scores(tmp_path: Path) -> None:
    folder = as_diffusiondb_zip(tmp_path / "data")
    with pytest.raises(BadInput, match=r"metadata\.parquet"):
        load_pairs([folder], max_nsfw=0.5)
    scores = {"image_name": ["a.png", "b.png", "c.png"], "image_nsfw": [0.1, 0.1, 2.0], "prompt_nsfw": [0.1, 0.9, 0.0]}
    parquet.write_table(pa.table(scores), folder / "metadata.parquet")
    assert list(load_pairs([folder])["text"]) == ["red", "green"]  # the blurred one never comes
    assert list(load_pairs([folder], max_nsfw=0.5)["text"]) == ["red"]
    assert list(load_pairs([f"diffusiondb:{folder}/images/part-000001.zip"])["id"]) == ["a", "b", "c"]


def test_pictures_that_carry_their_parameters(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", "a red square\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 4x4, Model: m")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=text)
    Image.new("RGB", (4, 4)).save(tmp_path / "without.png")
    rows = load_pairs([tmp_path])
    assert [(row["text"], row["id"]) for row in rows] == [("a red square", "a.png")]


def test_other_columns_and_the_names_there_are(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data")
    jsonl(folder / "metadata.jsonl", [{"picture": "a.png", "words": "red"}])
    with pytest.raises(BadInput, match="'picture', 'words'"):
        load_pairs([folder], image_column="picture")
    with pytest.raises(BadInput, match=r"'nothing'.*'picture', 'words'"):
        load_pairs([folder], image_column="picture", text_column="nothing")
    assert load_pairs([folder], image_column="picture", text_column="words")[0]["text"] == "red"
    parquet.write_table(pa.table({"image": [png()], "title": ["red"]}), tmp_path / "t.parquet")
    with pytest.raises(BadInput, match="'image', 'title'"):
        load_pairs([tmp_path / "t.parquet"])


@pytest.mark.parametrize("streaming", [False, True])
def test_empty_data_is_an_error(streaming: bool, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    jsonl(pictures(tmp_path / "blank") / "metadata.jsonl", [{"file_name": "a.png", "text": " "}])
    for name in ("nothing", "blank"):
        with pytest.raises(BadInput, match="no picture with a caption"):
            load_pairs([tmp_path / name], streaming=streaming)
    with pytest.raises(BadInput, match="at least one"):
        load_pairs([])


def test_what_is_not_there_or_broken(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="hub:org/name"):
        load_pairs(["org/name"])
    with pytest.raises(BadInput, match="no parquet file"):
        load_pairs([f"{tmp_path}/*.parquet"])
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_pairs(["hub:no-such-org/no-such-set"])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "part-000001.zip").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "captions_x.json").write_text("{}")
    (tmp_path / "captions_y.json").write_text("[]")
    for name in ("cut.parquet", "part-000001.zip", "captions_x.json", "captions_y.json"):
        with pytest.raises(BadInput, match=name):
            load_pairs([tmp_path / name])


def test_a_row_without_caption_is_left_out(tmp_path: Path) -> None:
    table = pa.table({"image": [png()] * 3, "text": ["one", None, ""]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert list(load_pairs([tmp_path / "t.parquet"])["text"]) == ["one"]
    assert [row["text"] for row in load_pairs([tmp_path / "t.parquet"], streaming=True)] == ["one"]


def test_what_is_left_out_is_returned_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = with_metadata_jsonl(tmp_path / "data")
    with (folder / "metadata.jsonl").open("a") as lines:
        lines.write('{"file_name": "\\u001b[31m.png", "text": ""}\n')
    left_out: list[LeftOut] = []
    load_pairs([folder], left_out=left_out)
    assert [(one.name, one.reason, one.source) for one in left_out] == [("\x1b[31m.png", "without a caption", "data")]
    assert not caplog.messages
    load_pairs([folder])
    assert caplog.messages == [r"data: 1 picture without a caption left out: \x1b[31m.png."]


def test_a_row_without_picture_is_an_unreadable_one(tmp_path: Path) -> None:
    table = pa.table({"image": [png()] * 39 + [None], "text": [f"row {n}" for n in range(40)]})
    parquet.write_table(table, tmp_path / "t.parquet")
    skipped: list[str] = []
    assert len(list(readable(load_pairs([tmp_path / "t.parquet"]), skipped))) == 39
    assert skipped == ["t.parquet: 39"]
    assert len(list(load_pairs([tmp_path / "t.parquet"], streaming=True))) == 39


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_without_an_id_is_called_by_its_number(streaming: bool, tmp_path: Path) -> None:
    table = pa.table({"image": [png()] * 3, "text": ["a", "b", "c"], "id": [None, "x", None]})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert [row["id"] for row in load_pairs([tmp_path / "t.parquet"], streaming=streaming)] == ["0", "x", "2"]


@pytest.mark.parametrize("streaming", [False, True])
def test_weights(streaming: bool, tmp_path: Path) -> None:
    first, second = with_metadata_jsonl(tmp_path / "first"), with_embedded_pictures(tmp_path / "second")
    rows = list(load_pairs([f"{first}@2", second], streaming=streaming))
    assert sorted(row["source"] for row in rows) == ["first"] * 6 + ["second"] * 3
    assert len({(row["source"], row["text"]) for row in rows}) == 6


def test_fractions_are_drawn_by_the_seed(tmp_path: Path) -> None:
    table = pa.table({"image": [png()] * 100, "text": [f"row {i}" for i in range(100)]})
    parquet.write_table(table, tmp_path / "t.parquet")
    spec = [f"{tmp_path}/t.parquet@1.3"]
    drawn = list(load_pairs(spec, seed=1)["text"])
    assert len(drawn) == 130
    assert set(drawn) == set(table["text"].to_pylist())
    assert drawn == list(load_pairs(spec, seed=1)["text"]) != list(load_pairs(spec, seed=2)["text"])
    streamed = [row["text"] for row in load_pairs(spec, seed=1, streaming=True)]
    assert set(streamed) == set(drawn)
    assert 110 < len(streamed) < 150
    with pytest.raises(BadInput, match="above 0"):
        parse("somewhere@0")
    with pytest.raises(BadInput, match=r"t.parquet@0.004 takes none of its 100 rows"):
        load_pairs([f"{tmp_path}/t.parquet@0.004"])


def test_a_folder_whose_name_looks_like_a_weight(tmp_path: Path) -> None:
    assert parse(with_sidecars(tmp_path / "set@2")).weight == 1


def broken(folder: Path, bad: int, of: int) -> Path:
    folder.mkdir()
    for number in range(of):
        (folder / f"{number:03}.png").write_bytes(png() if number >= bad else png()[:20])
    jsonl(folder / "metadata.jsonl", [{"file_name": f"{n:03}.png", "text": f"row {n}"} for n in range(of)])
    return folder


def test_unreadable_pictures_are_skipped_counted_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = load_pairs([broken(tmp_path / "data", bad=2, of=40)])
    by_index = pickle.loads(pickle.dumps(ReadableRows(rows)))  # as data loaders' processes get it
    assert [by_index[i]["text"] for i in (0, 1, 2, 39)] == ["row 2", "row 2", "row 2", "row 39"]
    assert [Path(name).name for name in by_index.skipped] == ["000.png", "001.png"]
    assert "000.png" in caplog.text
    skipped: list[str] = []
    assert [row["text"] for row in readable(rows, skipped)] == [f"row {n}" for n in range(2, 40)]
    assert len(skipped) == 2


def test_too_many_unreadable_pictures_are_an_error(tmp_path: Path) -> None:
    folder = broken(tmp_path / "data", bad=3, of=40)
    rows = load_pairs([folder])
    with pytest.raises(BadInput, match="3 of 40"):
        ReadableRows(rows)[0]
    with pytest.raises(BadInput, match="3 of 40"):
        list(readable(rows))
    with pytest.raises(BadInput, match="3 of 40"):
        list(readable(load_pairs([folder], streaming=True)))


def texts_of(batch: list[dict]) -> list[str]:
    """Of a batch; by a name, so that a worker that is no fork finds it."""
    return [row["text"] for row in batch]


def test_workers_share_what_they_found_unreadable(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader

    rows = ReadableRows(load_pairs([broken(tmp_path / "data", bad=2, of=40)]))
    loader = DataLoader(rows, batch_size=8, num_workers=2, collate_fn=texts_of)
    assert sum(map(len, loader)) == 40
    assert len(rows.skipped) == 2


def test_a_missing_picture_is_an_unreadable_one(tmp_path: Path) -> None:
    folder = as_kaggle(tmp_path / "data")
    (folder / "images" / "b.png").unlink()
    with pytest.raises(BadInput, match="1 of 3"):
        list(readable(load_pairs([folder])))
