"""The interrogator: CLIP and SigLIP as judges, every mode, the tables, their cache, and the 77 tokens."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from captioner import pipeline
from captioner.contracts import MODES, LoadOptions, Request
from captioner.decoding import Decoding, DecodingChanges
from captioner.errors import BadCheckpoint, BadInput, MissingExtra
from captioner.files.cache import cache_folder
from captioner.models.interrogator import interrogator, tables
from captioner.models.interrogator.interrogator import Chooser, Interrogator
from captioner.models.interrogator.tables import TermTable, TermTables
from captioner.models.parts import clip_texts, ranker
from captioner.models.parts.ranker import Ranker
from tests.decoders import pictures

LISTS = {
    "artists": ("ada moor", "ben holt", "cy vane"),
    "flavors": ("highly detailed", "sharp focus", "soft light", "red and blue", "8k", "neon glow", "film grain", "fog"),
    "mediums": ("a photo", "an oil painting", "a drawing"),
    "movements": ("art deco", "baroque", "fog"),
    "negative": ("blurry", "bad art"),
}
SHORT = Decoding(max_new_tokens=6)
CHANGED = Request(DecodingChanges(max_new_tokens=6))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """clip-interrogator as it is installed; to import it would fail, as it does without all it depends on."""
    folder = tmp_path / "site" / "clip_interrogator"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('no open_clip here')\n")
    for kind, terms in LISTS.items():
        (folder / "data" / f"{kind}.txt").write_text("\n".join(terms) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


@pytest.fixture
def options(tiny_checkpoint: Callable[[str], Path]) -> LoadOptions:
    """Tiny parts. Double precision: batches and singles then agree to the last letter."""
    blip, clip = (str(tiny_checkpoint(name)) for name in ("blip", "clip"))
    return LoadOptions(precision="float64", caption_model=blip, clip_model=clip)


def load(options: LoadOptions, **changes) -> Interrogator:
    options = replace(options, **changes)
    of_captioner = replace(options, caption_model=None, clip_model=None)
    return interrogator.load(None, options, lambda name: pipeline.load(name, of_captioner))


def own_tables(speaker: Interrogator, mode: str = "best", terms: tuple[Path, ...] | None = None) -> TermTables:
    return speaker.tables(terms, mode)


def chooser(speaker: Interrogator, forbid: Sequence[str] = ()) -> Chooser:
    return Chooser(speaker.ranker, own_tables(speaker), forbid)


def judge(tiny_checkpoint: Callable[[str], Path], name: str) -> Ranker:
    return Ranker.from_folder(tiny_checkpoint(name), LoadOptions(precision="float64"))


def said(speaker: Interrogator, count: int = 4, request: Request = CHANGED) -> list[str]:
    return [reading.candidates[0].text for reading in speaker.read_images(pictures(count), SHORT, request)]


# --- the judge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_vectors_are_those_of_transformers(tiny_checkpoint: Callable[[str], Path], name: str) -> None:
    ours = judge(tiny_checkpoint, name)
    theirs = AutoModel.from_pretrained(tiny_checkpoint(name)).double().eval()
    processor = AutoImageProcessor.from_pretrained(tiny_checkpoint(name), backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(name))
    texts = ["a red cat, art", "oil", "trending on 500px, highly detailed"]
    padding = True if name == "clip" else "max_length"
    with torch.no_grad():
        tokens = tokenizer(texts, return_tensors="pt", padding=padding)
        expected = theirs.get_text_features(**tokens).pooler_output
        pixels = processor(pictures(3), return_tensors="pt").to(dtype=torch.float64)
        seen = theirs.get_image_features(**pixels).pooler_output
    torch.testing.assert_close(ours.texts(texts), torch.nn.functional.normalize(expected))
    torch.testing.assert_close(ours.pictures(pictures(3)), torch.nn.functional.normalize(seen))


def test_padding_lies_where_the_tokenizer_puts_it(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint("siglip2"), tmp_path / "left")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
    ours = Ranker.from_folder(folder, LoadOptions(precision="float64"))
    tokens = AutoTokenizer.from_pretrained(folder)(["oil", "a red cat"], return_tensors="pt", padding="max_length")
    assert (tokens.input_ids[:, 0] == 0).all()
    with torch.no_grad():
        theirs = ours.model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(ours.texts(["oil", "a red cat"]), torch.nn.functional.normalize(theirs))


STRAIGHT = {
    "Bernard D’Andrea": "Bernard D'Andrea",
    "8k ”": '8k "',
    "fantastic ， mikecow": "fantastic , mikecow",
    "\x08moebius": "moebius",
    "death &amp;amp; note": "death & note",
    "ﬁne art": "fine art",
    "cafe\u0301": "café",
    "by greg rutkowski": "by greg rutkowski",
}
"""As open_clip 3.3's tokenizer (ftfy 6.3) reads them: its ids were equal for all 106,570 lines of clip-interrogator."""


@pytest.mark.parametrize("written", STRAIGHT)
def test_text_is_read_as_open_clip_reads_it(tiny_checkpoint: Callable[[str], Path], written: str) -> None:
    assert ranker.straightened(written) == STRAIGHT[written]
    ours = judge(tiny_checkpoint, "clip")
    assert ours._ids([written]) == ours._ids([STRAIGHT[written]])


def test_pictures_are_cut_as_open_clip_cuts_them(tiny_checkpoint: Callable[[str], Path]) -> None:
    """Where an odd number of pixels is cut off, from the nearest even one on, as torchvision does."""
    ours = judge(tiny_checkpoint, "clip")
    columns = np.zeros((32, 43, 3), dtype=np.uint8)
    columns[:, 6:38] = 255  # (43 - 32) / 2 = 5.5, to the nearest even number
    white = Image.new("RGB", (32, 32), "white")
    torch.testing.assert_close(ours.pictures([Image.fromarray(columns)]), ours.pictures([white]))


def test_terms_that_were_read_before_a_stop_are_not_read_again(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path))
    monkeypatch.setattr(tables, "PART", 3)
    ours, terms = judge(tiny_checkpoint, "clip"), [f"term {number}" for number in range(8)]
    read, whole = [], ours.texts

    def stopped(texts: list[str]) -> torch.Tensor:
        if len(read) == 2:
            raise KeyboardInterrupt
        read.append(texts)
        return whole(texts)

    monkeypatch.setattr(ours, "texts", stopped)
    with pytest.raises(KeyboardInterrupt):
        tables._vectors(ours, "flavors", terms)
    read.pop()
    vectors = tables._vectors(ours, "flavors", terms)
    assert read == [terms[:3], terms[6:]]
    torch.testing.assert_close(vectors, whole(terms).half(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("at_once", [1, 5, 128])
@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_similarities_share_beginnings_and_change_nothing(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str, at_once: int
) -> None:
    monkeypatch.setattr(ranker, "AT_ONCE", at_once)
    monkeypatch.setattr(clip_texts, "NODES", at_once)
    monkeypatch.setattr(clip_texts, "TREES", min(at_once, 16))
    ours = judge(tiny_checkpoint, name)
    terms = ["oil", "by ada moor", "by ada", "8k", "highly detailed, art", ".dots", "a", "oil", "oil paint", ""]
    texts = [
        [f"a red cat. at sea, {term}" for term in terms],
        [f"dog, {term}" for term in terms[:2]],
        [],
        ["one alone"],
        ["", "blue", "blue photo", "word " * 80],
    ]
    seen = ours.pictures(pictures(5))
    for picture, own, scores in zip(seen, texts, ours.similarities(seen, texts), strict=True):
        expected = [ours.texts([text])[0] @ picture for text in own if len(text) < 200]
        assert len(scores) == len(own)
        torch.testing.assert_close(scores[: len(expected)], torch.tensor(expected, dtype=torch.float64))
        assert (scores[len(expected) :] == -torch.inf).all()  # what is too long is never chosen


def test_foreign_checkpoints_are_refused(tiny_checkpoint: Callable[[str], Path], options: LoadOptions) -> None:
    terms = (tiny_checkpoint("blip") / "vocab.txt",)
    with pytest.raises(BadCheckpoint, match="holds a 'blip' model: terms are ranked by a CLIP or SigLIP"):
        load(options, clip_model=str(tiny_checkpoint("blip"))).tables(terms, "fast")


# --- the tables -------------------------------------------------------------------------------------------------------


def test_package_is_read_and_not_imported(package: Path) -> None:
    lists = tables.package_lists()
    assert {kind: tuple(lists[kind]) for kind in LISTS} == LISTS
    assert len(set(lists["trending"])) == 18 * 4
    assert "trending on artstation" in lists["trending"]


def test_without_the_package_the_remedy_is_named(options: LoadOptions) -> None:
    with pytest.raises(MissingExtra, match=r"pip install --no-deps clip-interrogator.*as terms"):
        load(replace(options, clip_model="no/such-clip")).read_images(pictures(1), SHORT)  # before anything is loaded


def test_tables_know_each_term_once(package: Path, options: LoadOptions) -> None:
    speaker = load(options)
    assert own_tables(speaker).of_kind["artists"].terms[:2] == ["by ada moor", "inspired by ada moor"]
    assert "fog" in own_tables(speaker).of_kind["movements"].terms
    assert "fog" not in own_tables(speaker).of_kind["flavors"].terms
    assert len(set(own_tables(speaker).everything.terms)) == len(own_tables(speaker).everything.terms)
    assert not {"blurry", "bad art"} & set(own_tables(speaker).everything.terms)
    for table in own_tables(speaker).of_kind.values():
        torch.testing.assert_close(table.vectors, speaker.ranker.texts(table.terms).half())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", [None, 4])
def test_chunks_do_not_change_the_ranking(monkeypatch: pytest.MonkeyPatch, sign: int, count: int | None) -> None:
    torch.manual_seed(0)
    vectors, seen = torch.randint(-9, 9, (50, 8)).half(), sign * torch.randint(-9, 9, (3, 8)).float()  # exact sums
    vectors[30:40] = vectors[20]  # terms that CLIP reads alike stay in the order of the list
    table = TermTable([f"term {n}" for n in range(50)], vectors)
    orders = (seen @ vectors.float().T).argsort(descending=True, stable=True)
    expected = [[table.terms[n] for n in order] for order in orders.tolist()]
    allowed = [[term for term in order if "4" not in term] for order in expected]
    for at_once, pictures_at_once in ((7, 1), (50, 2), (1000, 128)):
        monkeypatch.setattr(tables, "AT_ONCE", at_once)
        monkeypatch.setattr(tables, "PICTURES", pictures_at_once)
        assert table.nearest(seen, count) == [order[:count] for order in expected]
        assert table.nearest(seen, count, re.compile("4")) == [order[:count] for order in allowed]
    assert table.nearest(seen, count, re.compile("term")) == [[], [], []]


def test_own_lists_play_the_flavours_or_what_their_name_says(
    tmp_path: Path, options: LoadOptions, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mined.tsv").write_text("sea\t5\nsky\t3\n")
    (tmp_path / "more.txt").write_text("sand\nsea\n")
    (tmp_path / "artists.txt").write_text("ada moor\n")
    files = tuple(tmp_path / name for name in ("mined.tsv", "more.txt", "artists.txt"))
    speaker = load(options)
    tables = own_tables(speaker, "classic", files)
    assert tables.of_kind["flavors"].terms == ["sea", "sky", "sand"]
    assert "Classic prompts without mediums, trending, movements" in capsys.readouterr().err
    speaker.ranker.limit = 1000  # the tiny tokenizer spells letter by letter; here nothing is to be cut
    captions, seen = speaker.captions(pictures(2), CHANGED), speaker.ranker.pictures(pictures(2))
    for caption, text in zip(captions, Chooser(speaker.ranker, tables).classic(seen, captions), strict=True):
        first, *flavours = text.removeprefix(f"{caption}, ").split(", ")
        assert first in ("by ada moor", "inspired by ada moor")
        assert sorted(flavours) == ["sand", "sea", "sky"]


# --- the cache --------------------------------------------------------------------------------------------------------


def test_terms_are_read_once(package: Path, options: LoadOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = Ranker.texts
    monkeypatch.setattr(Ranker, "texts", lambda self, texts: read.extend(texts) or whole(self, texts))
    first = load(options)
    own_tables(first)
    assert sorted(read) == sorted([*own_tables(first).everything.terms, *own_tables(first).of_kind["negative"].terms])
    files = {file.name: file.stat().st_mtime_ns for file in cache_folder("terms").iterdir()}
    assert len(files) == 6
    vectors = load_file(next(cache_folder("terms").glob("flavors-*")))["vectors"]
    assert vectors.dtype == torch.float16
    read.clear()
    second = load(options)
    own_tables(second)
    assert read == []
    assert {file.name: file.stat().st_mtime_ns for file in cache_folder("terms").iterdir()} == files
    assert torch.equal(own_tables(second).everything.vectors, own_tables(first).everything.vectors)

    (package / "data" / "mediums.txt").write_text("a photo\na stamp\n")  # another table
    own_tables(load(options))
    assert read == ["a photo", "a stamp"]


def test_lists_are_read_once_for_all_batches(
    package: Path, options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    whole = tables.read_terms
    monkeypatch.setattr(tables, "read_terms", lambda file: read.append(file) or whole(file))
    speaker = load(options)
    for _ in range(2):
        own_tables(speaker)
    assert sorted(file.stem for file in read) == sorted(kind for kind in tables.KINDS if kind != "trending")


def test_another_model_or_precision_is_another_key(
    package: Path, options: LoadOptions, tmp_path: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    marks = {load(options).ranker.fingerprint, load(options, precision="fp32").ranker.fingerprint}
    changed = Path(shutil.copytree(tiny_checkpoint("clip"), tmp_path / "clip"))
    assert load(options, clip_model=str(changed)).ranker.fingerprint in marks  # where it lies does not matter
    weights = load_file(changed / "model.safetensors")
    weights["text_model.final_layer_norm.bias"][0] += 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    marks.add(load(options, clip_model=str(changed)).ranker.fingerprint)
    assert len(marks) == 3


def test_damaged_cache_is_made_again(package: Path, options: LoadOptions) -> None:
    good = own_tables(load(options)).everything.vectors
    flavors, artists = (next(cache_folder("terms").glob(f"{kind}-*")) for kind in ("flavors", "artists"))
    os.truncate(flavors, 20)
    save_file({"vectors": torch.zeros(1, 24).half()}, artists)
    assert torch.equal(own_tables(load(options)).everything.vectors, good)
    assert len(load_file(flavors)["vectors"]) == 7


# --- the modes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip", ["clip", "siglip"])
def test_batch_equals_singles(
    package: Path, options: LoadOptions, tiny_checkpoint: Callable[[str], Path], mode: str, clip: str
) -> None:
    speaker = load(options, clip_model=str(tiny_checkpoint(clip)))
    images = pictures(3)
    request = replace(CHANGED, mode=mode)
    at_once = speaker.read_images(images, SHORT, request)
    for image, reading in zip(images, at_once, strict=True):
        (alone,) = speaker.read_images([image], SHORT, request)
        assert [c.text for c in alone.candidates] == [c.text for c in reading.candidates]
        assert alone.candidates[0].score == pytest.approx(reading.candidates[0].score)
        assert reading.candidates[0].score < 0
        assert speaker.ranker.tokens(reading.candidates[0].text) <= speaker.ranker.limit
    if mode != "negative":  # what no picture is like may be the same for all
        assert len({reading.candidates[0].text for reading in at_once}) > 1


def test_fast_adds_the_nearest_terms(package: Path, options: LoadOptions) -> None:
    speaker = load(options)
    captions, seen = speaker.captions(pictures(3), CHANGED), speaker.ranker.pictures(pictures(3))
    for caption, picture, text in zip(captions, seen, said(speaker, 3, replace(CHANGED, mode="fast")), strict=True):
        table = own_tables(speaker).everything
        order = (table.vectors.double() @ picture).argsort(descending=True)[: interrogator.FAST_TERMS].tolist()
        whole = ", ".join(part for part in [caption, *(table.terms[n] for n in order)] if part)
        assert whole.startswith(text)
        assert whole[len(text) :][:1] in ("", ",")  # cut between terms
        rest = whole[len(text) + 2 :].split(", ")[0]
        assert not rest or speaker.ranker.tokens(f"{text}, {rest}") > 77  # and no earlier than it must


def test_classic_has_its_order(package: Path, options: LoadOptions) -> None:
    speaker = load(options)
    speaker.ranker.limit = 1000
    captions, seen = speaker.captions(pictures(3), CHANGED), speaker.ranker.pictures(pictures(3))
    for caption, text in zip(captions, chooser(speaker).classic(seen, captions), strict=True):
        made_by, trending, movement, *flavours = text.removeprefix(f"{caption}, ").split(", ")
        medium, artist = made_by.split(" by ") if " inspired" not in made_by else made_by.split(" inspired by ")
        assert medium in LISTS["mediums"]
        assert artist in LISTS["artists"]
        assert trending in own_tables(speaker).of_kind["trending"].terms
        assert movement in LISTS["movements"]
        assert len(flavours) == 3
        assert set(flavours) <= set(LISTS["flavors"])


def test_best_is_the_nearest_of_all_ways(package: Path, options: LoadOptions) -> None:
    speaker = load(options)
    captions, seen = speaker.captions(pictures(3), CHANGED), speaker.ranker.pictures(pictures(3))
    choose = chooser(speaker)
    ways = [captions, *(way(seen, captions) for way in (choose.classic, choose.fast, choose.best))]
    beams = Decoding(max_new_tokens=6, num_return_sequences=4)
    for n, reading in enumerate(speaker.read_images(pictures(3), beams, CHANGED)):
        texts = {way[n] for way in ways}
        (scores,) = speaker.ranker.similarities(seen[n : n + 1], [list(texts)])
        assert {c.text for c in reading.candidates} == texts
        assert reading.candidates[0].text == list(texts)[scores.argmax()]
        assert all(a.score >= b.score for a, b in pairwise(reading.candidates))


def by_hand(speaker: Interrogator, picture: torch.Tensor, text: str, terms: list[str], fewest: int) -> str:
    """The chain as one would write it for one picture, one text at a time."""

    def score(text: str) -> float:
        return (speaker.ranker.texts([text])[0] @ picture).item()

    now = score(text) if text else float("-inf")
    best, terms = (now, text), list(terms)
    for count in range(interrogator.MOST):
        tried = [
            (score(longer), longer, term)
            for term in terms
            if speaker.ranker.tokens(longer := f"{text}, {term}" if text else term) <= speaker.ranker.limit
        ]
        if not tried:
            break
        top, longer, term = max(tried)
        if top <= now and count >= fewest:
            break
        now, text = top, longer
        best = max(best, (now, text))
        terms.remove(term)
    return best[1]


@pytest.mark.parametrize("fewest", [0, 3])
def test_chain_is_the_one_by_hand(
    package: Path, options: LoadOptions, monkeypatch: pytest.MonkeyPatch, fewest: int
) -> None:
    monkeypatch.setattr(interrogator, "FEWEST", fewest)
    speaker = load(options)
    seen, starts = speaker.ranker.pictures(pictures(3)), ["a red cat", "dog", "fog " * 60]
    table = own_tables(speaker).of_kind["flavors"]
    texts = chooser(speaker).chain(seen, starts, [table.terms] * 3)
    assert texts == [
        by_hand(speaker, *of_picture, table.terms, fewest) for of_picture in zip(seen, starts, strict=True)
    ]
    assert len(set(map(len, texts))) == 3


def test_negative_is_the_chain_reversed(package: Path, options: LoadOptions) -> None:
    speaker = load(options, caption_model="no/such-captioner")  # which it does not need
    seen = speaker.ranker.pictures(pictures(3))
    terms = [*own_tables(speaker).of_kind["flavors"].terms, *own_tables(speaker).of_kind["negative"].terms]
    texts = said(speaker, 3, Request(mode="negative"))
    assert texts == [by_hand(speaker, -picture, "", terms, interrogator.FEWEST) for picture in seen]
    (scores,) = speaker.ranker.similarities(seen[:1], [[texts[0], *terms]])
    assert scores[0] <= scores.min() + 1e-12  # no single term is less like the picture


@pytest.mark.parametrize("mode", ["best", "fast", "classic"])
def test_long_captions_leave_no_text_past_77_tokens(
    package: Path, options: LoadOptions, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    speaker = load(options)
    prompts = speaker.captioner.generate(pictures(4), decoding=SHORT)
    long = [replace(prompt, text=f"{prompt.text} zebra, quartz " * n) for n, prompt in enumerate(prompts, 1)]
    monkeypatch.setattr(speaker.captioner, "generate", lambda *args, **more: long)
    lengths = [speaker.ranker.tokens(text) for text in said(speaker, 4, Request(mode=mode))]
    assert max(lengths) <= 77
    assert max(lengths) > 60


def test_forbidden_words_are_in_no_term(package: Path, options: LoadOptions) -> None:
    speaker = load(options)
    seen = speaker.ranker.pictures(pictures(1))
    (all_of_them,) = chooser(speaker)._nearest(own_tables(speaker).everything, seen, None)
    (allowed,) = chooser(speaker, ("Detailed", "art"))._nearest(own_tables(speaker).everything, seen, None)
    dropped = {"highly detailed", "art deco"}  # and not what only begins so, as artstation does
    assert allowed == [term for term in all_of_them if term not in dropped]
    assert len(allowed) == len(all_of_them) - 2
    (reading,) = speaker.read_images(pictures(1), Decoding(max_new_tokens=6, forbid=tuple(all_of_them[:2])))
    assert not any(term in reading.candidates[0].text.split(", ") for term in all_of_them[:2])


def test_the_captioner_keeps_its_own_settings(package: Path, options: LoadOptions) -> None:
    speaker = load(options)
    speaker.captioner.decoding = Decoding(num_beams=2, max_new_tokens=3)
    asked = []
    speaker.captioner.generate = lambda images, request, batch_size: asked.append(request) or []
    speaker.captions([], Request(DecodingChanges(num_beams=5, num_candidates=5), prompt="a", mode="fast"))
    assert asked == [Request(DecodingChanges(num_beams=5, num_candidates=1), prompt="a")]


def test_modes_and_lists_that_cannot_work(options: LoadOptions, tmp_path: Path) -> None:
    (tmp_path / "negative.txt").write_text("blurry\n")
    (tmp_path / "artists.txt").write_text("ada moor\n")
    speaker = load(options)
    with pytest.raises(BadInput, match="no mode 'slow': use one of best, fast"):
        Request(mode="slow")
    for request, message in (
        (Request(mode="negative", terms=(tmp_path / "artists.txt",)), "negative mode needs flavours"),
        (Request(terms=(tmp_path / "negative.txt",)), r"negative\.txt alone"),
        (Request(mode="negative", prompt="a"), "negative mode writes no caption: leave out prompt"),
    ):
        with pytest.raises(BadInput, match=message):
            speaker.read_images(pictures(1), SHORT, request)
    request = Request(mode="negative", terms=(tmp_path / "negative.txt",))
    assert speaker.read_images(pictures(1), SHORT, request)


def test_by_its_name_in_the_zoo(package: Path, options: LoadOptions) -> None:
    captioner = pipeline.load("interrogator", options)
    (prompt,) = captioner.generate(pictures(1), decoding=SHORT, mode="fast")
    assert prompt.model == "interrogator"
    assert "," in prompt.text


def test_analysis_tells_the_nearest_terms_of_every_kind(package: Path, options: LoadOptions) -> None:
    speaker = load(options)
    tables_of_kind = own_tables(speaker).of_kind
    analyses = speaker.analyze(pictures(2), 2)
    seen = speaker.ranker.pictures(pictures(2))
    for number, analysis in enumerate(analyses):
        assert list(analysis) == ["mediums", "movements", "trending", "artists", "flavors"]
        for kind, terms in analysis.items():
            expected = dict(zip(*nearest_by_hand(speaker, seen[number], tables_of_kind[kind].terms, 2), strict=True))
            assert list(terms) == list(expected)
            assert terms == pytest.approx(expected, abs=1e-3)  # the table is in half precision


def test_analysis_of_some_kinds_reads_no_others(
    package: Path, options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = Ranker.texts
    monkeypatch.setattr(Ranker, "texts", lambda self, texts: read.extend(texts) or whole(self, texts))
    (some,) = load(options).analyze(pictures(1), 3, ["flavors", "mediums"])
    assert sorted(read) == sorted({*LISTS["mediums"], *LISTS["flavors"]} - {"fog"})  # it is a movement
    read.clear()
    (every,) = load(options).analyze(pictures(1), 3)
    assert some == {kind: every[kind] for kind in ("mediums", "flavors")}
    assert set(read).isdisjoint({*LISTS["mediums"], *LISTS["flavors"]} - {"fog"})  # they were kept


def test_analysis_by_own_lists(options: LoadOptions, tmp_path: Path) -> None:
    (tmp_path / "artists.txt").write_text("ada moor\n")
    (tmp_path / "my.txt").write_text("sea\n" + "sky " * 90 + "\n")
    speaker, files = load(options), [str(tmp_path / name) for name in ("artists.txt", "my.txt")]
    (analysis,) = speaker.analyze(pictures(1), terms=files)
    assert {kind: set(terms) for kind, terms in analysis.items()} == {
        "artists": {"by ada moor", "inspired by ada moor"},
        "flavors": {"sea", ("sky " * 90).strip()},
    }
    with pytest.raises(BadInput, match=r"no mediums among the terms, their list is called mediums\.txt"):
        speaker.analyze(pictures(1), kinds=["artists", "mediums"], terms=files)
    with pytest.raises(BadInput, match="no kind of terms 'artist': use one of mediums"):
        speaker.analyze(pictures(1), kinds=["artist"], terms=files)


def test_numbers_that_are_none_are_not_left_out() -> None:
    """A run tells a damaged model by them."""
    table = TermTable(["sea", "sky", "sand"], torch.eye(3).half())
    (nearest,) = table.cosines(torch.full((1, 3), torch.nan), 2)
    assert list(map(str, nearest.values())) == ["nan", "nan"]


def nearest_by_hand(
    speaker: Interrogator, picture: torch.Tensor, terms: list[str], count: int
) -> tuple[list[str], list[float]]:
    scores = speaker.ranker.texts(terms) @ picture
    best = scores.topk(count)
    return [terms[index] for index in best.indices.tolist()], best.values.tolist()
