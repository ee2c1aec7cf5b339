"""The command line, through the real commands: what they print, where it goes, and how they fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import typer.main
from click.testing import Result
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import captioner
from captioner import zoo
from captioner.cli.main import app
from captioner.cli.verbs import OTHER_OPTIONS
from captioner.contracts import LoadOptions, Request
from captioner.decoding import Decoding
from captioner.models.interrogator import interrogator, tables
from captioner.models.ofa.processor import QUESTION
from captioner.models.parts.ranker import Ranker
from captioner.text.embedding import text_embedder
from training.recipe import BACKBONES


@pytest.fixture
def blip(tiny_checkpoint: Callable[[str], Path]) -> str:
    return str(tiny_checkpoint("blip"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four noisy pictures in a folder and its subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "c.png", "more/d.png")):
        noise = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def call(*words: object, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def drawn(path: Path, text: str, **settings: object) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (16, 16), "red").save(path, pnginfo=info, **settings)
    return path


A1111 = "a castle, oil painting\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42"


# --- generate: one picture -------------------------------------------------------------------------------------------


def test_one_picture_gives_its_prompt_alone(blip: str, photos: Path) -> None:
    result = call("generate", photos / "a.png", "--model", blip)
    [prompt] = captioner.load(blip).generate([photos / "a.png"])
    assert (result.stdout, result.stderr, result.exit_code) == (f"{prompt.text}\n", "", 0)
    printed = ("generate", photos / "a.png", "--model", blip, "--out", "-")  # standard output, as if it were left out
    [row] = rows(call(*printed, "--json"))
    assert (call(*printed).stdout, row["text"]) == (result.stdout, prompt.text)
    assert call(*printed, "--embed").stderr.startswith("captioner: --embed needs --json or --out;")


def test_json_holds_everything(blip: str, photos: Path) -> None:
    [row] = rows(call("generate", photos / "a.png", "-m", blip, "--json", "--embed", "--num-candidates", "3"))
    [prompt] = captioner.load(blip).generate([photos / "a.png"], decoding=Decoding(num_return_sequences=3))
    assert (row["text"], row["model"], row["source"]) == (prompt.text, blip, "model")
    assert row["score"] == pytest.approx(prompt.score, abs=1e-5)
    assert [candidate["text"] for candidate in row["candidates"]] == [c.text for c in prompt.candidates]
    assert np.array(row["embedding"]) == pytest.approx(text_embedder()([row["text"]])[0], abs=1e-6)


def test_standard_input_and_a_folder_of_one(blip: str, photos: Path) -> None:
    prompt = call("generate", photos / "a.png", "-m", blip).stdout
    assert call("generate", "-", "-m", blip, stdin=(photos / "a.png").read_bytes()).stdout == prompt
    for name in ("b.png", "c.png"):
        (photos / name).unlink()
    assert call("generate", photos, "-m", blip).stdout == f"{photos / 'a.png'}\t{prompt}"


@pytest.mark.parametrize(
    ("flags", "decoding"),
    [
        ("--num-beams 1 --max-new-tokens 5", {"num_beams": 1, "max_new_tokens": 5}),
        ("--num-candidates 6", {"num_beams": 6, "num_return_sequences": 6}),
        ("--length-penalty -1 --early-stopping never", {"length_penalty": -1.0, "early_stopping": "never"}),
        ("--early-stopping true --min-new-tokens 9", {"early_stopping": True, "min_new_tokens": 9}),
        (
            "--repetition-penalty 1.5 --no-repeat-ngram-size 2",
            {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        ),
        (
            "--do-sample --temperature 2 --top-k 9 --top-p 0.9 --seed 7",
            {"do_sample": True, "temperature": 2.0, "top_k": 9, "top_p": 0.9, "seed": 7},
        ),
        (
            "--forbid photo,robot --forbid tree",
            {"forbid": ("photo", "robot", "tree")},
        ),
    ],
)
def test_every_search_flag_reaches_the_search(blip: str, photos: Path, flags: str, decoding: dict) -> None:
    settings = {"max_new_tokens": 12} | decoding
    short = ["--max-new-tokens", settings["max_new_tokens"]]
    [row] = rows(call("generate", photos / "a.png", "-m", blip, "--json", *short, *flags.split()))
    [prompt] = captioner.load(blip).generate([photos / "a.png"], decoding=Decoding(**settings))
    assert (row["text"], row["raw"]) == (prompt.text, prompt.raw)


def test_what_is_done_to_the_text(blip: str, photos: Path) -> None:
    def text(*flags: str) -> str:
        return call("generate", photos / "a.png", "-m", blip, *flags).stdout.rstrip("\n")

    plain = text()
    assert text("--prefix", "sks style", "--suffix", "8k") == f"sks style, {plain}, 8k"
    first, *others = plain.split(", ")
    replaced = call(
        "generate", photos / "a.png", "-m", blip, "--replace", f"{first.upper()}=sks", "--replace", "zebra="
    )
    assert replaced.stdout.rstrip("\n") == ", ".join(["sks", *others])
    assert replaced.stderr.splitlines()[-1] == "captioner: --replace found zebra in no text"
    said = rows(call("generate", photos, "-r", "-m", blip, "--num-beams", "1", "--json", "-q"))
    raw = call("generate", photos, "-r", "-m", blip, "--num-beams", "1", "--raw", "-q").stdout.splitlines()
    assert [line.split("\t")[1] for line in raw] == [row["raw"] for row in said]
    assert [row["raw"] for row in said] != [row["text"] for row in said]
    assert len(text("--max-tokens-clip", "12")) < len(plain)
    [several] = rows(call("generate", photos / "a.png", "-m", blip, "--num-candidates", "4", "--json"))
    said = [candidate["text"] for candidate in several["candidates"]]
    assert text("--num-candidates", "4", "--consensus") in said
    assert text("--prompt", "a painting of") != plain


def test_all_candidates_are_printed_best_first(blip: str, photos: Path) -> None:
    [row] = rows(call("generate", photos / "a.png", "-m", blip, "--num-candidates", "3", "--json"))
    several = ["--num-candidates", "3", "--all-candidates"]
    lines = call("generate", photos / "a.png", "-m", blip, *several).stdout.splitlines()
    assert lines == [candidate["text"] for candidate in row["candidates"]]
    named = call("generate", photos, "-m", blip, "-q", *several).stdout.splitlines()
    assert named[: len(lines)] == [f"{photos / 'a.png'}\t{line}" for line in lines]


def test_sampling_can_be_switched_off(photos: Path) -> None:
    def raw(*flags: str) -> list[str]:
        [row] = rows(call("generate", photos / "a.png", "-m", "mini", "--json", *flags))
        return [candidate["text"] for candidate in row["candidates"]]

    assert raw("--seed", "1", "--quality", "fast") != raw("--seed", "2", "--quality", "fast")
    refused = call("generate", photos / "a.png", "-m", "mini", "--no-do-sample", "--seed", "1")
    assert refused.exit_code == 2
    assert "--seed would change nothing" in refused.stderr
    assert raw("--num-beams", "4") == raw("--no-do-sample")  # who asks for beams gets a search


def test_words_in_lists(photos: Path) -> None:
    def said(*flags: str) -> str:
        [row] = rows(call("generate", photos / "a.png", "-m", "mini", "--quality", "fast", "--json", *flags))
        return row["text"]

    plain = said()
    first, *_, last = plain.split()
    bound = said("--forbid", f"{last},zebra", "--require", "☃,8k")
    assert bound.endswith(", ☃, 8k")
    assert last not in bound.split()
    assert said("--require", first) == plain


def test_attention_is_drawn(blip: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "looked.png"
    result = call("generate", photos / "a.png", "-m", blip, "--max-new-tokens", "4", "--attention", out)
    assert result.exit_code == 0, result.output
    assert Image.open(out).width > 100
    assert call("generate", photos / "a.png", "-m", blip, "--attention", out).exit_code == 2
    assert call("generate", photos, "-m", blip, "--attention", tmp_path / "b.png").exit_code == 2


def test_what_a_picture_carries_is_taken_only_when_asked_for(blip: str, photos: Path) -> None:
    drawn(photos / "z.png", A1111)
    both = [photos / "a.png", photos / "z.png", "-m", blip, "--json"]
    assert [row["source"] for row in rows(call("generate", *both))] == ["model", "model"]
    plain, carried = rows(call("generate", *both, "--metadata", "first", "--prefix", "sks"))
    assert (plain["source"], carried["source"]) == ("model", "metadata")
    assert (carried["text"], carried["raw"]) == ("sks, a castle, oil painting", "a castle, oil painting")
    assert (carried["model"], carried["score"]) == (None, None)
    drawn(photos / "z.png", A1111.replace("a castle", "(a castle:1.2)"))
    weighted = call("generate", photos / "z.png", "--metadata", "only", "--escape", "--suffix", "(sks)")
    assert weighted.stdout == "(a castle:1.2), oil painting, (sks)\n"
    words = call("generate", photos / "z.png", "--metadata", "only", "--plain", "--suffix", "(sks)")
    assert words.stdout == "a castle, oil painting, (sks)\n"
    idle = call("generate", photos / "z.png", "--plain")
    assert (idle.exit_code, "Say --metadata first or only." in idle.stderr) == (2, True)
    only = call("generate", *both, "--metadata", "only", "--embed")
    assert only.exit_code == 1
    [row] = [json.loads(line) for line in only.stdout.splitlines()]
    assert row["file"].endswith("z.png")
    assert len(row["embedding"]) == 384
    assert "a.png carries no prompt. Say --metadata first, and a model is asked." in only.stderr


# --- generate: many pictures -----------------------------------------------------------------------------------------


def test_many_pictures_are_a_line_each_the_same_as_one_by_one(blip: str, photos: Path) -> None:
    lines = call("generate", photos, "--recursive", "-m", blip, "--batch-size", "3").stdout.splitlines()
    names = [line.split("\t")[0] for line in lines]
    assert [Path(name).name for name in names] == ["a.png", "b.png", "c.png", "d.png"]
    assert len(call("generate", photos, "-m", blip).stdout.splitlines()) == 3
    for name, line in zip(names, lines, strict=True):
        assert line == f"{name}\t{call('generate', name, '-m', blip).stdout.rstrip()}"


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet", "set"])
def test_every_sink_holds_the_same_prompts(blip: str, photos: Path, tmp_path: Path, name: str) -> None:
    result = call("generate", photos, "-m", blip, "--out", tmp_path / name)
    assert (result.exit_code, result.stdout) == (0, "")
    expected = [line.split("\t")[1] for line in call("generate", photos, "-m", blip).stdout.splitlines()]
    if name == "set":
        read = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
        shown = [file for file in os.listdir(tmp_path / "set") if not file.startswith(".")]
        assert sorted(shown) == ["a.png", "b.png", "c.png", "metadata.jsonl"]
    else:
        import datasets

        kind = {"c.jsonl": "json", "c.csv": "csv", "c.parquet": "parquet"}[name]
        cache = str(tmp_path / "cache")
        read = datasets.load_dataset(kind, data_files=str(tmp_path / name), cache_dir=cache)["train"]
    assert [row["text"] for row in read] == expected
    assert call("generate", photos, "-m", blip, "--out", tmp_path / name).exit_code == 2
    again = call("generate", photos, "-m", blip, "--out", tmp_path / name, "--resume")
    assert again.exit_code == 0
    assert "3 were already" in again.stderr


@pytest.mark.parametrize("verb", ["generate", "embed"])
def test_a_table_of_other_columns_is_refused_before_a_model_is_loaded(photos: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "blip"}')  # which has no weights to be loaded
    (tmp_path / "c.csv").write_text("file,text\na.png,mine\n")
    refused = call(verb, photos, "-m", tmp_path / "model", "--out", tmp_path / "c.csv", "--resume")
    now = "file, embedding" if verb == "embed" else "file, text, score, model, precision, source, raw, candidates"
    assert f"c.csv has the columns file, text, and now they would be {now}. Give the same again" in refused.stderr
    assert refused.exit_code == 2
    assert (tmp_path / "c.csv").read_text() == "file,text\na.png,mine\n"
    assert not (tmp_path / "c.csv.part").exists()


def test_sidecars_lie_beside_their_pictures(blip: str, photos: Path) -> None:
    (photos / "b.txt").write_text("mine")
    assert call("generate", photos, "-m", blip, "--sidecar", "--quiet").exit_code == 0
    assert (photos / "b.txt").read_text() == "mine"
    assert (photos / "a.txt").read_text() == call("generate", photos / "a.png", "-m", blip).stdout
    assert call("generate", photos, "-m", blip, "--sidecar", "--on-existing", "error").exit_code == 1
    assert call("generate", photos, "-m", blip, "--sidecar", "--on-existing", "prepend").exit_code == 0
    assert (photos / "b.txt").read_text() == call("generate", photos / "b.png", "-m", blip).stdout.strip() + ", mine\n"


# --- bad input -------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def bad_pictures(folder: Path) -> Iterator[str]:
    """Files that cannot be captioned, by what is wrong with them."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = BytesIO()
    Image.fromarray(noise).save(whole, "PNG")
    contents = {
        "truncated.png": whole.getvalue()[:4000],
        "empty.png": b"",
        "text.png": b"This is a text.",
        "bomb.png": png(40_000, 40_000, chunk(b"IDAT", zlib.compress(bytes(1000)))),
        "new\nline.jpg": b"no picture",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        yield name
    (folder / "broken link.png").symlink_to(folder / "gone.png")
    yield "broken link.png"


def odd_pictures(folder: Path) -> Iterator[str]:
    """Files that are strange but fine."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 4), dtype=np.uint8)
    picture = Image.fromarray(noise)
    odd = {
        "1x1.png": Image.new("RGB", (1, 1)),
        "wide.png": Image.new("L", (3_000, 4)),
        "palette.gif": picture.convert("P"),
        "cmyk.jpg": picture.convert("CMYK"),
        "16 bit.png": Image.fromarray(noise[..., 0].astype(np.uint16) * 257),
        "alpha.png": picture,
        "new\nline.png": picture,
        "tab\tand é.png": picture,
    }
    for name, image in odd.items():
        image.save(folder / name)
        yield name
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])
    yield "animated.webp"
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.convert("RGB").save(folder / "turned.jpg", exif=turned)
    yield "turned.jpg"
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.png"), "wb") as stream:
        picture.save(stream, "PNG")
    yield os.fsdecode(b"caf\xe9.png")
    heavy = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 1))
    pixel = chunk(b"IDAT", zlib.compress(b"\0\0"))
    (folder / "heavy text.png").write_bytes(png(1, 1, heavy, pixel))
    yield "heavy text.png"


def test_a_folder_of_everything_is_one_run(blip: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good, bad = set(odd_pictures(folder)), set(bad_pictures(folder))
    (folder / "loop").symlink_to(folder)
    out = tmp_path / "a.jsonl"
    result = call("generate", folder, "--recursive", "-m", blip, "--num-beams", "1", "--out", out, "--quiet")
    assert result.exit_code == 1
    assert {Path(json.loads(line)["file"]).name for line in out.read_text().splitlines()} == good
    errors = [json.loads(line) for line in (tmp_path / "a.jsonl.errors.jsonl").read_text().splitlines()]
    assert {Path(error["file"]).name for error in errors} == bad
    assert result.stderr.splitlines() == [f"captioner: {error['error']}" for error in errors]
    again = call("generate", folder, "--recursive", "-m", blip, "--num-beams", "1", "--out", out, "--resume")
    assert again.exit_code == 1
    assert f"0 done, {len(good)} were already, {len(bad)} failed" in again.stderr.splitlines()[-1]


def test_inputs_that_name_nothing_are_said_one_by_one(blip: str, photos: Path) -> None:
    (photos / "none").mkdir()
    wrong = ["", photos / "none", photos / "gone.png", photos / "*.gif", "http://127.0.0.1:1/a.png"]
    result = call("generate", *wrong, photos / "a.png", "-m", blip, "--quiet")
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 1
    assert len(result.stderr.splitlines()) == len(wrong)


def test_a_single_bad_picture_is_status_1(blip: str, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    result = call("generate", tmp_path / "empty.png", "-m", blip)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"captioner: {tmp_path}/empty.png is empty (0 bytes).\n"


def test_max_pixels(blip: str, photos: Path) -> None:
    result = call("generate", photos / "a.png", "-m", blip, "--max-pixels", "100")
    assert result.exit_code == 1
    assert "--max-pixels" in result.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "blipp"], "did you mean 'blip'"),
        (["--model", ""], "No model ''"),
        (["--model", "{photos}"], "no config.json"),
        (["--model", "~nobody-of-this-name/x"], "No model"),
        (["--model", "blip", "--device", "cpu"], "HF_HUB_OFFLINE"),
        (["--out", "{photos}/x/a.jsonl"], "mkdir"),
        (["--out", "{photos}"], "not empty"),
        (["--out", "{photos}/a.png"], "ending"),
        (["--out", "a.npy"], "captioner embed"),
        (["--out", f"{'a' * 300}.jsonl"], "too long"),
        (["--out", "/proc/a.jsonl"], "/proc"),
        (["--resume"], "--out"),
        (["--overwrite"], "--out"),
        (["--resume", "--overwrite", "--out", "a.jsonl"], "one of them"),
        (["--sidecar", "--out", "a.jsonl"], "--sidecar"),
        (["--sidecar", "--json"], "--sidecar"),
        (["--sidecar", "--embed"], "--sidecar"),
        (["--on-existing", "skip"], "--sidecar"),
        (["--caption-extension", ".caption"], "--sidecar"),
        (["--embed"], "--json"),
        (["--json", "--out", "a.jsonl"], "--json"),
        (["--num-candidates", "5", "--num-beams", "2"], "raise --num-beams, or say --do-sample"),
        (["--num-candidates", "0"], "--num-candidates must be a whole number, 1 or more, not 0"),
        (["--min-new-tokens", "99"], "raise --max-new-tokens"),
        (["--min-new-tokens", "-5"], "--min-new-tokens must be"),
        (["--no-repeat-ngram-size", "-1"], "--no-repeat-ngram-size must be"),
        (["--temperature", "0"], "--temperature must be"),
        (["--temperature", "nan"], "--temperature must be"),
        (["--temperature", "1e-300"], "--temperature must be"),
        (["--top-p", "3"], "--top-p must be"),
        (["--prefix", "caf\udce9"], "--prefix is not UTF-8"),
        (["--all-candidates", "--json"], "--all-candidates prints"),
        (["--all-candidates", "--sidecar"], "--all-candidates prints"),
        (["--all-candidates", "--out", "a.jsonl"], "--all-candidates prints"),
        (["--overwrite", "--sidecar"], "--on-existing overwrite"),
        (["--device", "meta"], "'meta'"),
        (["--forbid", "cat", "--require", "Cat"], "cat"),
        (["--forbid", " , "], "--forbid names no word"),
        (["--require", ""], "--require names no word"),
        (["--attention", "a.jpg"], ".png"),
        (["--attention", "a.png", "--metadata", "first"], "--metadata"),
        (["--device", "cuda:77"], "Use cpu"),
        (["--precision", "fp13"], "fp32"),
        (["--out", "x.txt"], "what --sidecar is for"),
    ],
)
def test_what_cannot_be_is_one_clear_line_and_status_2(
    blip: str, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = [] if "--model" in words else ["--model", blip]
    result = call("generate", photos / "a.png", *model, *[word.format(photos=photos) for word in words])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert reason in line
    assert os.listdir(tmp_path) == ["photos"]


def test_an_unwritable_place_is_said_before_the_model_is_looked_for(photos: Path, tmp_path: Path) -> None:
    result = call("generate", photos, "--model", "no-such-model", "--out", tmp_path / "gone" / "a.jsonl")
    assert "mkdir" in result.stderr
    assert "no-such-model" not in result.stderr


def test_a_missing_index_is_said_before_a_picture_is_opened(tmp_path: Path) -> None:
    (tmp_path / "broken.png").touch()
    result = call("similar", tmp_path / "broken.png", "--index", tmp_path / "none")
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert "none holds no index: make one with captioner index build" in line


def test_without_any_model_the_error_says_what_to_do(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(zoo, "BUNDLED", tmp_path / "none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    result = call("generate", photos / "a.png")
    assert result.exit_code == 2
    assert "--model" in result.stderr


def test_a_model_that_gives_embeddings_sends_to_embed(tiny_checkpoint: Callable[[str], Path], photos: Path) -> None:
    result = call("generate", photos / "a.png", "-m", tiny_checkpoint("direct"))
    assert result.exit_code == 2
    assert "captioner embed" in result.stderr


def test_standard_output_that_is_full(tmp_path: Path) -> None:
    picture = drawn(tmp_path / "a.png", A1111)
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "captioner", "read", str(picture)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert re.fullmatch(r"captioner: Standard output cannot be written \(.*\)\.\n", done.stderr)


# --- embed, read, models, terms --------------------------------------------------------------------------------------


def test_embed_texts(tmp_path: Path) -> None:
    expected = text_embedder()(["a castle", "é", ""])
    printed = call("embed", "a castle", "é", "").stdout.splitlines()
    assert np.array([[float(x) for x in line.split()] for line in printed]) == pytest.approx(expected, abs=1e-6)
    (tmp_path / "prompts.txt").write_text("a castle\né\n\n", encoding="utf-8")
    assert call("embed", "--file", tmp_path / "prompts.txt", "--out", tmp_path / "v.npy").exit_code == 0
    assert np.load(tmp_path / "v.npy") == pytest.approx(expected, abs=1e-6)
    named = rows(call("embed", "--json", "--file", tmp_path / "prompts.txt"))
    assert [row["text"] for row in named] == ["a castle", "é", ""]


def test_texts_from_standard_input() -> None:
    [row] = rows(call("embed", "--file", "-", "--json", stdin="\ufeffa castle, é\r\n".encode()))
    assert row["text"] == "a castle, é"
    assert call("terms", "mine", "-", stdin=b"a, big cat\nbig cat, b\n").stdout == "big cat\t2\n"


def test_embed_pictures(blip: str, tiny_checkpoint: Callable[[str], Path], photos: Path, tmp_path: Path) -> None:
    result = call("embed", photos, "-m", blip, "--out", tmp_path / "v.npy", "--num-beams", "1")
    assert result.exit_code == 0, result.output
    said = call("generate", photos, "-m", blip, "--num-beams", "1").stdout.splitlines()
    expected = text_embedder()([line.split("\t")[1] for line in said])
    assert np.load(tmp_path / "v.npy") == pytest.approx(expected, abs=1e-5)
    [row] = rows(call("embed", photos / "a.png", "-m", tiny_checkpoint("direct"), "--json"))
    assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-5)
    alone = call("embed", photos, "-m", blip, "--expected")
    assert alone.exit_code == 2
    assert "--expected would change nothing: " in alone.stderr
    assert "gives one candidate. Raise --num-candidates, or leave it out." in alone.stderr
    mean = call("embed", photos / "a.png", "-m", blip, "--num-candidates", "4", "--expected").stdout.split()
    assert np.linalg.norm([float(x) for x in mean]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "Nothing to do"),
        (["{photos}/a.png", "a castle"], "either"),
        (["{photos}/gone.png"], "There is no picture"),
        (["gone.JPG"], "There is no picture"),
        (["nofolder/"], "There is no picture"),
        (["a castle", "--expected"], "--expected would change nothing"),
        (["a castle", "--num-beams", "3", "--question", "what?"], "--num-beams and --question would"),
        (["{photos}/gone*.png"], "There is no picture"),
        (["--file", "{photos}/gone.txt"], "cannot be read"),
        (["--file", os.devnull], "There is no text to embed"),
        (["--file", os.devnull, "--out", "{photos}/v.npy"], "There is no text to embed"),
        (["--file", "{photos}/a.png"], "not UTF-8"),
        (["--model", "mini"], "Name a picture, a folder, an address or - (standard input)"),
        (["--model", "mini", "--file", "{photos}/gone.txt"], "--file holds texts: leave out pictures and --model"),
        (["{photos}/a.png", "--file", "{photos}/gone.txt"], "--file holds texts: leave out pictures and --model"),
        (["a castle", "--device", "cuda", "--precision", "bf16"], "--device and --precision would change nothing"),
        (["a castle", "-r", "--max-pixels", "5"], "--recursive and --max-pixels would change nothing"),
        (["a castle", "--batch-size", "5"], "--batch-size would change nothing"),
        (["a castle", os.fsdecode(b"caf\xe9")], r"captioner: 'caf\\xe9' is not UTF-8 text."),
        (["a castle", "--out", "v.txt"], "v.txt: name a file that ends in"),
        (["a castle", "--out", "vectors"], "vectors is for pictures, these are texts"),
    ],
)
def test_embed_says_what_is_wrong(photos: Path, words: list[str], reason: str) -> None:
    result = call("embed", *[word.format(photos=photos) for word in words])
    assert result.exit_code == 2
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_pictures_are_embedded_however_they_are_named(photos: Path) -> None:
    """None of them can be read, so no model is asked."""
    (photos / "bad.png").touch()
    for named, stdin in ((photos / "bad*.png", None), ((photos / "bad.png").as_uri(), None), ("-", b"")):
        result = call("embed", named, stdin=stdin)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.endswith("is empty (0 bytes).\n")


@pytest.mark.parametrize("flag", ["--prompt", "--question", "--instruction", "--forbid", "--prefix", "--require"])
def test_words_that_are_no_text(photos: Path, flag: str) -> None:
    refused = call("generate", photos / "a.png", flag, os.fsdecode(b"caf\xe9"))
    assert (refused.exit_code, refused.stderr) == (2, f"captioner: {flag} is not UTF-8 text.\n")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--num-beams", "2", "--precision", "bf16"], "--num-beams and --precision"),
        (["--consensus"], "--consensus"),
        (["--quality", "fast"], "--quality"),
    ],
)
def test_what_is_asked_of_no_model_is_refused(photos: Path, words: list[str], flags: str) -> None:
    refused = call("generate", photos / "a.png", "--metadata", "only", *words)
    told = f"captioner: {flags} would change nothing: by --metadata only no model is asked.\n"
    assert (refused.exit_code, refused.stderr) == (2, told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "4"], "--workers would change nothing: add --engine ray."),
        (["--gpus-per-worker", "1", "--address", "auto"], "--address and --gpus-per-worker would change nothing"),
    ],
)
def test_an_index_that_ray_is_not_asked_for(photos: Path, tmp_path: Path, words: list[str], told: str) -> None:
    refused = call("index", "build", photos, "--out", tmp_path / "index", *words)
    assert refused.exit_code == 2
    assert told in refused.stderr


def test_a_pool_is_checked(photos: Path, tmp_path: Path) -> None:
    """A misspelled one was written into the index and changed nothing, neither did one of another backbone."""
    (photos / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a castle"}\n')
    build = ("index", "build", photos, "--k", "1", "--out", tmp_path / "index")
    assert call(*build, "--pool", "statistic").exit_code == 2
    refused = call(*build, "--pool", "statistics", "--backbone", "vit")
    told = "captioner: vit has no use for pool, which efficientnet-lite* has: leave it out.\n"
    assert (refused.exit_code, refused.stderr) == (2, told)


def test_what_is_said_of_a_plan_is_refused_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    refused = call("merge", tmp_path, tmp_path / "whole", "--as", "table", "--partial")
    assert refused.exit_code == 2
    assert "--as and --partial would change nothing" in refused.stderr


@pytest.mark.parametrize("verb", ["serve", "mcp"])
def test_models_between_commas_are_named(verb: str) -> None:
    result = call(verb, "--models", " ,")
    assert (result.exit_code, result.stderr) == (2, "captioner: --models names no model.\n")


def test_an_embedder_that_nothing_asks_for_is_refused(photos: Path) -> None:
    refused = call("generate", photos / "a.png", "-m", "mini", "--embedder", "other")
    assert refused.exit_code == 2
    assert "captioner: --embedder would change nothing: add --embed or --consensus." in refused.stderr


def test_read_shows_what_pictures_carry(photos: Path) -> None:
    drawn(photos / "z.png", A1111)
    one = call("read", photos / "z.png")
    assert one.exit_code == 0
    assert one.stdout.splitlines()[:2] == ["a castle, oil painting", "Negative prompt: blurry"]
    assert "Seed: 42" in one.stdout
    [row] = rows(call("read", photos / "z.png", "--json"))
    assert (row["prompt"], row["negative_prompt"], row["seed"]) == ("a castle, oil painting", "blurry", 42)
    many = call("read", photos)
    assert many.exit_code == 1
    assert many.stdout.startswith(f"{photos / 'z.png'}\na castle")
    assert len(many.stderr.splitlines()) == 3


def test_models_lists_every_entry() -> None:
    listed = json.loads(call("models", "--json").stdout)
    assert [row["name"] for row in listed] == list(zoo.ENTRIES)
    table = call("models").stdout
    assert all(f"{name} " in table for name in zoo.ENTRIES)  # none cut short on a narrow terminal
    assert "Salesforce/blip-image-captioning-large" in table
    assert "yours: you train or build it and name its folder" in table
    assert "hub:ORG/NAME: " in table
    assert "openai:ADDRESS#NAME: " in table


def test_terms_are_mined(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat, oil painting\na dog, Oil Painting, 8k\n")
    for printed in ((), ("--out", "-")):
        assert call("terms", "mine", tmp_path / "prompts.txt", *printed).stdout == "oil painting\t2\n"
    out = tmp_path / "terms.tsv"
    written = call("terms", "mine", tmp_path / "prompts.txt", "--min-count", "1", "--out", out)
    assert (written.exit_code, written.stderr) == (0, f"captioner: {out}: {len(out.read_text().splitlines())} terms\n")
    assert out.read_text().splitlines()[0] == "oil painting\t2"
    assert len(out.read_text().splitlines()) == 4
    assert call("terms", "mine", tmp_path / "prompts.txt", "--out", out).exit_code == 2
    assert call("terms", "mine", tmp_path / "gone.txt").exit_code == 2
    (tmp_path / "once.txt").write_text("a cat, oil painting\n")
    nothing = call("terms", "mine", tmp_path / "once.txt")
    assert (nothing.exit_code, nothing.stdout) == (2, "")
    assert "--min-count 1" in nothing.stderr


def test_terms_are_mined_from_what_holds_captions(pairs: Path, tmp_path: Path) -> None:
    for source in (pairs, pairs / "metadata.jsonl", f"folder:{pairs}"):
        told = call("terms", "mine", source, "--min-count", "1").stdout
        assert "a blue cat in the forest\t1\n" in told
        assert len(told.splitlines()) == 16
    (tmp_path / "captions.csv").write_text('file,caption\na.png,"red, 8k"\nb.png,8k\nc.png,\n')
    assert call("terms", "mine", tmp_path / "captions.csv").stdout == "8k\t2\n"
    (tmp_path / "sizes.csv").write_text("file,size\na.png,8k\n")
    assert "has no caption column" in call("terms", "mine", tmp_path / "sizes.csv").stderr


@pytest.fixture
def own_terms(tmp_path: Path, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two lists, the CLIP that ranks them, and an empty cache for their vectors."""
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "artists.txt").write_text("ada moor\nben holt\ncy vane\n")
    (tmp_path / "my.tsv").write_text(
        "".join(f"{word} {colour}\t1\n" for word in ("cat", "dog", "sea") for colour in ("red", "blue", "gray"))
    )
    lists = (str(tmp_path / name) for name in ("artists.txt", "my.tsv"))
    return [*(word for file in lists for word in ("--terms", file)), "--clip-model", str(tiny_checkpoint("clip"))]


def test_terms_are_ranked(
    own_terms: list[str], tiny_checkpoint: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    ranker = Ranker.from_folder(tiny_checkpoint("clip"), LoadOptions())
    seen = ranker.pictures([Image.open(photos / name) for name in ("a.png", "b.png", "c.png", "more/d.png")])
    own = (tmp_path / "artists.txt").read_text().splitlines()
    texts = {
        "artists": [f"{way} {name}" for name in own for way in ("by", "inspired by")],
        "flavors": [line.split("\t")[0] for line in (tmp_path / "my.tsv").read_text().splitlines()],
    }
    ranked = rows(call("terms", "rank", photos, "-r", *own_terms, "--json", "--count", "3", "--batch-size", "3", "-q"))
    assert [os.path.basename(row["file"]) for row in ranked] == ["a.png", "b.png", "c.png", "d.png"]
    for row, picture in zip(ranked, seen, strict=True):
        assert [term["kind"] for term in row["terms"]] == ["artists"] * 3 + ["flavors"] * 3
        for kind, its_texts in texts.items():
            cosines = dict(zip(its_texts, (ranker.texts(its_texts) @ picture).tolist(), strict=True))
            nearest = sorted(cosines, key=lambda text: -cosines[text])[:3]
            found = {term["term"]: term["similarity"] for term in row["terms"] if term["kind"] == kind}
            assert list(found) == nearest
            assert found == pytest.approx({text: cosines[text] for text in nearest}, abs=1e-3)
    table = call("terms", "rank", photos / "a.png", *own_terms, "--count", "3").stdout
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if "│" in line]
    assert cells == [
        [term["kind"] if n % 3 == 0 else "", f"{term['similarity']:.3f}", term["term"]]
        for n, term in enumerate(ranked[0]["terms"])
    ]


def test_the_progress_of_a_model_is_not_told_where_quiet(
    own_terms: list[str],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    call("terms", "rank", photos / "a.png", *own_terms, "--quiet")
    assert not caplog.messages
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "another"))
    call("terms", "rank", photos / "a.png", *own_terms)
    told = "Reading {} for the ranking; this is done once …"
    assert caplog.messages == [told.format("6 artists"), told.format("9 flavors")]


def test_ranked_terms_in_a_file(own_terms: list[str], photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").touch()
    two = ("--kind", "artists", "--count", "2", "-q")
    rank = ("terms", "rank", photos, *own_terms, "--out", tmp_path / "a.jsonl", *two)
    result = call(*rank)
    assert result.exit_code == 1
    assert result.stderr.count("bad.png") == 1
    (photos / "bad.png").unlink()
    printed = rows(call("terms", "rank", photos, "-r", *own_terms, "--json", *two))
    other = call(*rank[:-1], "--resume", "--count", "3")
    assert "--count was 2 and is now 3" in other.stderr
    resumed = call(*rank[:-1], "--resume", "--recursive")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stderr.endswith(": 1 done, 3 were already\n")
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == printed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--kind", "artist"],
            "There is no kind of terms 'artist': use one of mediums, movements, trending, artists, ",
        ),
        (["--kind", "artists,mediums"], "called mediums.txt: name one more list with --terms FILE."),
        (["--kind", " ,"], "--kind names no word."),
        (["--terms", "gone.txt"], "gone.txt cannot be read"),
        (["--out", "a.npy"], "A .npy file holds no text: name another, or use `captioner embed`."),
        (["--clip-model", "{blip}"], "terms are ranked by a CLIP or SigLIP"),
    ],
)
def test_terms_that_cannot_be_ranked(
    own_terms: list[str], blip: str, photos: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    monkeypatch.chdir(photos)
    result = call("terms", "rank", "a.png", *own_terms, *[word.format(blip=blip) for word in words])
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert told in line
    assert sorted(os.listdir(photos)) == ["a.png", "b.png", "c.png", "more"]


def test_a_damaged_model_ranks_no_terms(own_terms: list[str], photos: Path, tmp_path: Path) -> None:
    *lists, clip = own_terms
    damaged = Path(shutil.copytree(clip, tmp_path / "damaged"))
    weights = load_file(damaged / "model.safetensors")
    weights["visual_projection.weight"][:] = torch.finfo().max  # the file is sound
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    result = call("terms", "rank", photos, *lists, damaged, "--out", tmp_path / "a.jsonl")
    assert result.exit_code == 2
    assert "The model's numbers are not finite (NaN)" in result.stderr
    assert not (tmp_path / "a.jsonl").exists()


# --- help ------------------------------------------------------------------------------------------------------------


def verbs() -> dict[str, object]:
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {f"{name} {verb}": each for verb, each in inner.items()} if inner is not None else {name: command}
    return found


@pytest.mark.parametrize("verb", ["generate", "embed", "read", "models", "terms mine", "terms rank"])
def test_help_names_every_option_and_says_what_it_does(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = call(*verb.split(), "--help").stdout
    command = verbs()[verb]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name
            assert all(name in shown for name in parameter.opts), parameter.opts
    assert "captioner" in shown or verb == "models"  # an example


def test_help_names_what_an_option_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its choices and its default, where other modules have them."""
    monkeypatch.setenv("COLUMNS", "1000")
    asked, indexed = call("generate", "-h").stdout, call("index", "build", "-h").stdout
    for kind in tables.KINDS:
        assert kind == "flavors" or f"{kind}.txt" in asked
    for default in (interrogator.CAPTION_MODEL, zoo.CLIP, QUESTION.strip()):
        assert f"(default: {default})" in asked
    for backbone in BACKBONES:
        assert re.search(rf"\b{backbone}\b(?!-)", indexed), backbone


def test_what_most_people_need_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    panel = call("generate", "-h").stdout.split("First of all")[1].split("╰")[0]
    first = ["recursive", "out", "resume", "sidecar", "prefix", "max-tokens-clip", "num-candidates", "model"]
    assert re.findall(r"--([a-z-]+)", "\n".join(line[:30] for line in panel.splitlines())) == first


def test_values_have_short_names() -> None:
    for verb in verbs():
        assert not re.search(r"<bool>|<list", call(*verb.split(), "-h").stdout), verb


def test_help_is_a_word_too() -> None:
    assert call("help", "terms", "mine").stdout == call("terms", "mine", "--help").stdout
    assert "Millions of pictures" in call("help").output


def test_alone_it_shows_three_commands() -> None:
    result = call()
    assert result.exit_code == 0
    assert re.findall(r"^captioner (\w+) cat.png", result.stdout, re.MULTILINE) == ["generate", "embed", "read"]
    assert "captioner --help" in result.stdout


def test_version() -> None:
    for flag in ("--version", "-V"):
        assert call(flag).stdout == f"captioner {captioner.__version__}\n"


@pytest.mark.parametrize("picture", ["cat.png", "https://example.org/cat", "{photos}"])
def test_a_picture_in_place_of_a_command(photos: Path, picture: str) -> None:
    picture = picture.format(photos=photos)
    result = call(picture)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith(f"Did you mean: captioner generate {picture}\n")


@pytest.mark.parametrize(
    ("words", "meant"), [(["caption", "-m", "mini", "a.jpg"], "a.jpg"), (["interrogate"], "cat.png")]
)
def test_a_verb_of_another_tool(words: list[str], meant: str) -> None:
    result = call(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (f"captioner: There is no command {words[0]!r}. Did you mean: captioner generate {meant}\n")


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["generate", "a.png", "--undesired_tags", "solo"], "(Possible options: --forbid)"),
        (["generate", "a.png", "--append", "8k"], "(Possible options: --on-existing, --suffix)"),
        (["embed", "a.png", "--max-length=9"], "(Possible options: --max-new-tokens)"),
        (["terms", "rank", "a.png", "--max-length", "9"], "No such option: --max-length │"),
        (["generate", "a.png", "--promt", "a"], "--prompt)"),
    ],
)
def test_an_option_of_another_tool(words: list[str], ours: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert ours in " ".join(result.stderr.split())


def test_options_of_other_tools_stand_for_ours_and_are_none() -> None:
    own = {name for parameter in verbs()["generate"].params for name in parameter.opts + parameter.secondary_opts}
    assert own.issuperset(OTHER_OPTIONS)
    assert own.isdisjoint(f"--{name}" for names in OTHER_OPTIONS.values() for name in names)


def test_help_of_every_verb_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for verb, command in verbs().items():
        assert (command.help or "").strip().split("\n")[0][:1].isupper(), verb


@pytest.mark.parametrize("group", [LoadOptions, Request])
def test_model_flags_are_the_fields_of_the_library(group: type) -> None:
    flags = {parameter.name for parameter in verbs()["embed"].params}
    assert set(group.__dataclass_fields__) - {"decoding"} <= flags


def test_search_flags_are_those_of_decoding() -> None:
    flags = {parameter.name for parameter in verbs()["generate"].params}
    named = {"num_return_sequences": "num_candidates"}
    assert {named.get(name, name) for name in Decoding.__dataclass_fields__} <= flags


def test_help_and_reading_metadata_load_no_torch(tmp_path: Path) -> None:
    script = """
import sys
from typer.testing import CliRunner
from captioner.cli.main import app
for words in (["--help"], ["generate", "--help"], ["models"], ["generate", sys.argv[1], "--metadata", "only"]):
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "torch" not in sys.modules, words
"""
    picture = drawn(tmp_path / "a.png", A1111)
    done = subprocess.run([sys.executable, "-c", script, str(picture)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_of_an_index_reach_the_terminal_escaped() -> None:
    from captioner.cli.rows import neighbours_table

    near = {"picture": "\x1b[31mred.png", "prompt": "\x1b]0;pwned\x07a [/b] cat", "similarity": 0.5}
    shown = neighbours_table({"file": "\x1b[2Ja.png", "similar": [near]})
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "[/b]" in shown
