"""From a name and pictures to prompts: the Python API on a tiny BLIP."""

import copy
import io
import json
import pickle
import shutil
import typing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from weakref import ref

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

import captioner
from captioner import compute
from captioner.contracts import LoadOptions, Request
from captioner.decoding import Decoding, DecodingChanges
from captioner.errors import BadCheckpoint, BadImage, BadInput
from captioner.models.knn.build import Recipe, build
from captioner.pipeline import Captioner, LazyEmbedder
from captioner.prompt import Candidate, Reading
from captioner.text.finish import Finish

EXAMPLES = Path(__file__).parents[1] / "examples" / "pictures"
BEAMS = Decoding(num_beams=3, num_return_sequences=3, max_new_tokens=8)


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return captioner.load(str(tiny_checkpoint("blip")))


def test_paths_pictures_arrays_and_bytes_give_the_same_prompt(model, pairs: Path) -> None:
    path = pairs / "0.png"
    picture = Image.open(path).convert("RGB")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    prompts = model.generate([path, str(path), picture, np.asarray(picture), encoded.getvalue()], decoding=BEAMS)
    assert len({prompt.text for prompt in prompts}) == 1
    assert [prompt.score for prompt in prompts] == pytest.approx([prompts[0].score] * 5, abs=1e-5)  # threads share rows


def test_a_prompt_carries_everything(model, pairs: Path) -> None:
    [prompt] = model.generate([pairs / "1.png"], decoding=BEAMS)
    assert prompt.text == prompt.candidates[0].text
    assert prompt.source == "model"
    assert prompt.model == model.name
    assert 1 <= len(prompt.candidates) <= 3
    assert np.linalg.norm(prompt.embedding) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(model.embed([pairs / "1.png"], decoding=BEAMS)[0], prompt.embedding, atol=1e-6)


def test_a_notebook_shows_what_comes_out_in_a_line(model, tiny_checkpoint) -> None:
    """Prompts with their candidates, and readings with their vectors, filled screens."""
    candidates = tuple(Candidate(f"cat {number}", -0.5) for number in range(16))
    prompt = model.prompt(Reading(candidates), Finish(consensus=False))
    shown = f"<Prompt 'cat 0', from model {model.name}, score -0.500, 16 candidates>"
    assert repr([prompt, replace(prompt, candidates=candidates[:1], source="metadata", model="A1111")]) == (
        f"[{shown}, <Prompt 'cat 0', from metadata A1111, score -0.500, 1 candidate>]"
    )
    assert prompt.embedding.shape == (384,)
    assert repr(prompt) == shown
    reading = Reading(candidates[:1], prompt.embedding, np.stack([prompt.embedding]))
    assert repr(reading) == f"Reading(candidates=({candidates[0]!r},), shortlist=0)"
    direct = captioner.load(tiny_checkpoint("direct"))
    asked = Request(DecodingChanges(num_beams=2), prompt="a", terms=("a.txt",))
    assert repr(asked) == f"Request(decoding=DecodingChanges(num_beams=2), prompt='a', terms=({Path('a.txt')!r},))"
    assert repr(Request()) == "Request()"
    assert (repr(model), repr(direct)) == (
        f"<Captioner {model.name}, {model.precision}>",
        f"<DirectEmbedder {direct.name}>",
    )


@pytest.mark.parametrize("family", ["blip", "clip_prefix", "git", "ofa", "resnet_lstm"])
def test_autocast_of_the_caller_changes_nothing(tiny_checkpoint, pairs: Path, family: str) -> None:
    model, picture = captioner.load(tiny_checkpoint(family)), pairs / "0.png"
    alone = model.generate(picture)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate(picture).candidates == alone.candidates
        assert np.array_equal(model.embed(picture), alone.embedding)


def test_autocast_of_the_caller_changes_no_vector(tiny_checkpoint, pairs: Path) -> None:
    model, picture = captioner.load(tiny_checkpoint("direct")), pairs / "0.png"
    alone = model.embed(picture)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(model.embed(picture), alone)


@pytest.mark.parametrize("family", ["blip", "clip_prefix", "direct", "git", "ofa", "resnet_lstm"])
def test_what_the_caller_has_tensors_made_as_changes_nothing(tiny_checkpoint, pairs: Path, family: str) -> None:
    """A device without data stands for any that is not the model's own."""
    asked = {} if family == "direct" else {"do_sample": True, "seed": 1, "max_new_tokens": 8}
    model, picture = captioner.load(tiny_checkpoint(family), device="cpu"), pairs / "0.png"
    alone = model.embed(picture, **asked)
    for dtype, device in ((torch.float64, None), (torch.bfloat16, None), (torch.float32, torch.device("meta"))):
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)
        try:
            again = captioner.load(tiny_checkpoint(family), device="cpu").embed(picture, **asked)
            assert np.array_equal(model.embed(picture, **asked), alone)
            assert np.array_equal(again, alone)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)


def test_batch_size_changes_nothing(model, pairs: Path) -> None:
    paths = sorted(pairs.glob("*.png"))[:5]
    texts = [prompt.text for prompt in model.generate(paths, decoding=BEAMS, batch_size=5)]
    assert texts == [prompt.text for prompt in model.generate(paths, decoding=BEAMS, batch_size=2)]
    with pytest.raises(BadInput, match="batch_size must be a whole number, 1 or more, not -1"):  # and no empty list
        model.generate(paths, batch_size=-1)


def test_candidates_are_cleaned_and_doubles_dropped(model) -> None:
    said = ("a red hat, a red hat <EOS>", "a red hat", "a dog")
    reading = Reading(tuple(Candidate(text, -float(i)) for i, text in enumerate(said)))
    prompt = model.prompt(reading, Finish(consensus=False))
    assert [candidate.text for candidate in prompt.candidates] == ["a red hat", "a dog"]
    assert prompt.raw == said[0]
    assert model.prompt(reading, Finish(clean=False)).text == said[0]
    prompt = model.prompt(reading, Finish(consensus=False, replace=("a red hat=a cat", "a dog=a cat")))
    assert prompt.candidates == (Candidate("a cat", 0.0),)  # the best of them


def test_consensus_and_a_predicted_embedding_choose(model) -> None:
    said = ("a spaceship", "a small cat", "a little cat", "a cat")
    candidates = tuple(Candidate(text, -1.0) for text in said)
    assert model.prompt(Reading(candidates), Finish(consensus=False)).text == "a spaceship"
    assert model.prompt(Reading(candidates), Finish(consensus=True)).text.endswith("cat")
    [spaceship] = model.embed_texts(["a rocket in space"])
    assert model.prompt(Reading(candidates[::-1], spaceship), Finish(consensus=True)).text == "a spaceship"


def test_a_prediction_in_another_space_does_not_choose(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "predicts", False)
    candidates = tuple(Candidate(text, -1.0) for text in ("a spaceship", "a small cat", "a little cat", "a cat"))
    elsewhere = np.eye(8, dtype=np.float32)[0]
    assert model.prompt(Reading(candidates, elsewhere), Finish(consensus=True)).text.endswith("cat")


def test_the_models_own_gists_choose_without_embedding_a_text(model, monkeypatch) -> None:
    monkeypatch.setattr(model, "embed_texts", None)
    candidates = tuple(Candidate(text, -1.0) for text in ("a dog <EOS>", "a dog", "a house", "a cat"))
    gists = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    house = np.array([0.1, 0.9, 0.1], dtype=np.float32)
    assert model.prompt(Reading(candidates, house, gists), Finish(consensus=True)).text == "a house"


def test_a_shortlist_by_the_gists_is_judged_by_the_texts_themselves(model, monkeypatch) -> None:
    candidates = tuple(Candidate(text, -1.0) for text in ("a small cat", "a cat", "a house", "a spaceship"))
    [cat] = model.embed_texts(["a cat"])
    gists = np.stack([np.eye(len(cat), dtype=np.float32)[axis] for axis in range(4)])
    gists = gists + np.array([[0.1], [0.2], [0.4], [0.3]]) * 20 * cat  # house, spaceship, cat, small cat
    gists = (gists / np.linalg.norm(gists, axis=1, keepdims=True)).astype(np.float32)
    texts = {
        shortlist: model.prompt(Reading(candidates, cat, gists, shortlist), Finish(consensus=True)).text
        for shortlist in (0, 2, 4)
    }
    assert texts[0] == "a house"
    assert texts[2] in ("a house", "a spaceship")
    assert texts[4] == "a cat"
    monkeypatch.setattr(model, "predicts", False)  # texts are embedded elsewhere: the gists alone can choose
    assert model.prompt(Reading(candidates, cat, gists, 4), Finish(consensus=True)).text == "a house"


def test_a_trigger_word_does_not_change_the_choice(model) -> None:
    reading = Reading(tuple(Candidate(text, -1.0) for text in ("a spaceship", "a small cat", "a little cat", "a cat")))
    plain = model.prompt(reading, Finish(consensus=True))
    dressed = model.prompt(reading, Finish(consensus=True, prefix="a spaceship in space, a rocket"))
    assert dressed.text == f"a spaceship in space, a rocket, {plain.text}"
    assert all(candidate.text.startswith("a spaceship in space") for candidate in dressed.candidates)


@pytest.mark.parametrize(
    ("finish", "text"),
    [
        (Finish(prefix="sks style"), "sks style, a cat"),
        (Finish(prefix="sks: ", suffix=" --v 5"), "sks: a cat --v 5"),
        (Finish(suffix="oil painting"), "a cat, oil painting"),
        (Finish(prefix="sks style,", suffix=", 8k"), "sks style, a cat, 8k"),
        (Finish(prefix="(sks:1.2)", suffix="(8k:1.2)"), "(sks:1.2), a cat, (8k:1.2)"),
        (Finish(prefix="(", suffix=":1.2)"), "(a cat:1.2)"),
        (Finish(suffix="--v 5"), "a cat --v 5"),
    ],
)
def test_trigger_words(finish: Finish, text: str) -> None:
    assert finish.text("a cat") == text


def test_the_clip_limit_counts_the_trigger_word_too() -> None:
    from captioner.text.length import clip_tokens

    long = ", ".join(f"castle number {number}" for number in range(40))
    text = Finish(prefix="sks style", suffix="oil", max_clip_tokens=40).text(long)
    assert text.startswith("sks style, castle number 0")
    assert text.endswith(", oil")
    assert clip_tokens(text) <= 40


def test_a_trigger_word_that_is_too_long_by_itself_is_refused() -> None:
    with pytest.raises(BadInput, match=r"alone are 10 .* limit of 4"):
        Finish(prefix="sks style of a very long trigger word", max_clip_tokens=4)
    assert Finish(prefix="sks style", max_clip_tokens=5).text("a cat") == "sks style"


def test_a_checkpoint_brings_its_own_settings(tiny_checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "blip"
    folder.mkdir()
    for file in tiny_checkpoint("blip").iterdir():
        (folder / file.name).symlink_to(file)
    settings = folder / "decoding.json"
    settings.write_text(json.dumps({"num_beams": 2, "consensus": True}))
    model = captioner.load(str(folder))
    assert model.decoding.num_beams == 2
    assert model.consensus
    settings.write_text(json.dumps({"beams": 2}))
    with pytest.raises(BadCheckpoint, match="beams"):
        captioner.load(str(folder))


def test_expected_embedding_is_a_unit_vector_between_the_candidates(model, pairs: Path) -> None:
    [vector] = model.embed([pairs / "2.png"], decoding=BEAMS, expected=True)
    [prompt] = model.generate([pairs / "2.png"], decoding=BEAMS, finish=Finish(consensus=False))
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    candidates = model.embed_texts([candidate.text for candidate in prompt.candidates])
    assert (candidates @ vector).min() >= (candidates @ candidates.T).min() - 1e-5


def test_one_picture_gives_one_prompt(model, pairs: Path) -> None:
    path = pairs / "1.png"
    [expected] = model.generate([path], decoding=BEAMS)
    with Image.open(path) as picture:
        for one in (str(path), path, picture, np.asarray(picture), path.read_bytes()):
            prompt = model.generate(one, decoding=BEAMS)
            assert (prompt.text, prompt.score) == (expected.text, expected.score)
        assert model.embed(picture, decoding=BEAMS).shape == (384,)
        assert len(model.generate(np.asarray(picture)[None], decoding=BEAMS)) == 1


def test_an_open_file_is_one_picture_and_an_array_of_paths_several(model, pairs: Path) -> None:
    """A file gives lines and a path letters to whoever takes them for lists."""
    path = pairs / "1.png"
    expected = model.generate(path, decoding=BEAMS).text
    written = io.BytesIO(path.read_bytes())
    written.seek(0, io.SEEK_END)  # where a picture was saved into it
    with path.open("rb") as file:
        for one in (file, written, bytearray(path.read_bytes()), memoryview(path.read_bytes())):
            assert model.generate(one, decoding=BEAMS).text == expected
    for paths in (np.array([str(path)] * 2), np.array([path, path])):
        assert [prompt.text for prompt in model.generate(paths, decoding=BEAMS)] == [expected, expected]
    assert len(list(model.readings(str(path)))) == 1
    assert len(list(model.readings(iter([path, path])))) == 2
    assert model.vectors([]).shape == (0, 384)
    assert model.vectors(str(path)).shape == (1, 384)
    with path.open(encoding="latin1") as file, pytest.raises(BadInput, match="mode 'rb'"):
        model.generate(file)


@pytest.mark.parametrize("family", ["blip", "direct"])
def test_pictures_of_a_generator_come_as_they_are_needed(tiny_checkpoint, family: str) -> None:
    """All of them were in memory at once, and those of a column of `datasets`."""
    model, given, most = captioner.load(tiny_checkpoint(family)), [], 0

    def draw() -> Iterator[Image.Image]:
        nonlocal most
        for number in range(9):
            picture = Image.new("RGB", (32, 32), (number, 0, 0))
            given.append(ref(picture))
            most = max(most, sum(one() is not None for one in given))
            yield picture

    assert len(model.embed(draw(), batch_size=2)) == 9
    assert most <= 5  # a batch, the next, and the one that the generator holds


def test_a_picture_as_datasets_gives_it_undecoded(model, pairs: Path) -> None:
    path = pairs / "1.png"
    expected = model.generate(path, decoding=BEAMS).text
    rows = datasets.Dataset.from_dict({"image": [str(path)]}).cast_column("image", datasets.Image(decode=False))
    for undecoded in (rows[0]["image"], {"bytes": path.read_bytes(), "path": "elsewhere.png"}):
        assert model.generate(undecoded, decoding=BEAMS).text == expected
    assert [prompt.text for prompt in model.generate(rows["image"], decoding=BEAMS)] == [expected]


@pytest.mark.parametrize(
    "images", [{"a.png": 1}, {"bytes": None, "path": None}, pandas.DataFrame({"image": ["a.png"]})]
)
def test_what_has_names_of_its_own_is_no_list_of_them(model, images: object) -> None:
    with pytest.raises(BadInput, match=r"(dict|DataFrame) is no picture: give a path"):
        model.generate(images)


def test_a_speaker_that_gives_too_few_readings_is_told(pairs: Path) -> None:
    """Pictures went missing, or got the texts of others."""

    class Silent:
        uses: frozenset[str] = frozenset()
        longest = None

        def read_images(self, images, decoding, request):
            return [Reading((Candidate("a cat", -1.0),))]

    mine = Captioner("mine", Silent(), LazyEmbedder(None), Decoding())
    assert mine.generate(pairs / "1.png").text == "a cat"
    with pytest.raises(BadInput, match="mine gave 1 reading of 2 pictures: read_images returns one for each"):
        mine.generate([pairs / "0.png", pairs / "1.png"])


def test_settings_by_name_go_over_the_models_own(model, pairs: Path) -> None:
    path = pairs / "1.png"
    wanted = model.generate(path, decoding=Decoding(num_beams=2, max_new_tokens=5, num_return_sequences=2))
    assert model.generate(path, num_beams=2, max_new_tokens=5, num_candidates=2).candidates == wanted.candidates
    assert model.generate(path, prompt="a picture of").text != model.generate(path).text
    assert len(model.generate(path, decoding=replace(BEAMS, num_return_sequences=1), num_candidates=2).candidates) == 2
    for wrong, says in (
        ({"colour": "red"}, "'colour': decoding, prompt"),
        ({"num_beam": 2}, "did you mean num_beams"),
        ({"num_return_sequences": 2}, "did you mean num_candidates"),
        ({"prefix": "sks style"}, r"did you mean finish=captioner\.Finish\(prefix="),
    ):
        with pytest.raises(TypeError, match=says):
            model.generate(path, **wrong)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_beams": "3"}, "num_beams must be a whole number, 1 or more, not '3'"),
        ({"num_candidates": 2.5}, "num_candidates must be a whole number, 1 or more, not 2.5"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number"),
        ({"do_sample": "no"}, "do_sample is False or True, not 'no'"),
        ({"do_sample": True, "seed": "a"}, "seed must be a whole number, not 'a'"),
        ({"do_sample": True, "seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"do_sample": True, "temperature": True}, "temperature must be a number from 0.01"),
        ({"do_sample": True, "temperature": 10**400}, "temperature must be a number from 0.01"),
        ({"forbid": [None]}, "forbid must be words"),
        ({"forbid": 3}, r"forbid is a list of words: \[3\]"),
        ({"prompt": 3}, "prompt must be a text, not int"),
        ({"decoding": {"num_beams": 2}}, "decoding must be a Decoding, not dict"),
        ({"request": Decoding(num_beams=2)}, "request must be a Request, not Decoding.*num_beams=2"),
        ({"finish": "x"}, "finish must be a captioner.Finish, not str"),
        ({"finish": Finish}, "finish must be a captioner.Finish, not type"),
        ({"batch_size": "8"}, "batch_size must be a whole number, 1 or more, not '8'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_of_another_type_is_one_sentence(model, pairs: Path, settings: dict, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        model.generate([pairs / "1.png"], **settings)


def test_one_list_of_terms_needs_no_list_around_it() -> None:
    """Each letter of its name was a file."""
    wanted = Request(terms=(Path("my.tsv"),))
    for terms in ("my.tsv", Path("my.tsv"), ["my.tsv"], iter([Path("my.tsv")])):
        asked = Request(terms=terms)
        assert asked == wanted
        assert hash(asked) == hash(wanted)
    for wrong in (3, [3]):
        with pytest.raises(BadInput, match="terms must be files, not"):
            Request(terms=wrong)


def test_words_may_come_from_anything_that_gives_them(model, pairs: Path) -> None:
    """A generator was empty when the search came to it, and nothing was forbidden."""
    assert Decoding(forbid=(word for word in ["cat", "dog"])) == Decoding(forbid=("cat", "dog"))
    assert Finish(require=["cat"]).require == ("cat",)
    changes = DecodingChanges(forbid=iter(["cat"]))
    assert hash(changes) == hash(DecodingChanges(forbid=("cat",)))
    plain = model.generate(pairs / "1.png", decoding=BEAMS).text
    word = plain.split()[-1]
    assert word not in model.generate(pairs / "1.png", decoding=replace(BEAMS, forbid=iter([word]))).text.split()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"clean": "sks style"}, "clean is True or False, not 'sks style'"),
        ({"consensus": "no"}, "consensus is True, False or None, not 'no'"),
        ({"suffix": 3}, "suffix must be a text, not int"),
        ({"max_clip_tokens": "77"}, "max_clip_tokens must be a whole number, 3 or more, not '77'"),
        ({"max_clip_tokens": 0}, "max_clip_tokens must be a whole number, 3 or more, not 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_text_cannot_be_finished_with_is_one_sentence(settings: dict, says: str) -> None:
    """A trigger word without its name was lost without a word."""
    with pytest.raises(BadInput, match=says):
        Finish(**settings)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": 3}, "by its name or folder, not by int"),
        ({"device": None}, "There is no device None"),
        ({"embedder": 3}, "embedder must be a text, not int"),
        ({"trust_remote_code": "no"}, "trust_remote_code is True or False, not 'no'"),
        ({"options": {"device": "cpu"}}, "options must be a LoadOptions, not dict"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_model_cannot_be_loaded_with_is_one_sentence(arguments: dict, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        captioner.load(**{"name": "mini"} | arguments)


def test_a_misspelt_option_of_loading_is_told_as_one_of_asking_is() -> None:
    for wrong, says in (({"devise": "cpu"}, "did you mean device"), ({"colour": 1}, "'colour': device, precision")):
        with pytest.raises(TypeError, match=says):
            captioner.load("mini", **wrong)


def test_models_of_a_model_may_be_paths() -> None:
    """Each is named in a run's settings, which are JSON."""
    given = LoadOptions(caption_model=Path("a"), clip_model=Path("b"), embedder=Path("c"))
    assert given == LoadOptions(caption_model="a", clip_model="b", embedder="c")


def test_a_folder_may_be_a_path(tiny_checkpoint) -> None:
    folder = tiny_checkpoint("blip")
    assert captioner.load(Path(folder)).name == captioner.load(str(folder)).name


def test_what_a_model_has_no_use_for_is_refused_by_name(model, pairs: Path) -> None:
    path = pairs / "1.png"
    for settings, names in (
        ({"question": "what?", "mode": "fast"}, "no use for mode and question, which interrogator has: leave it out"),
        ({"style": "tags"}, "no use for style, which hub:ORG/NAME and openai:ADDRESS#NAME have: leave it out"),
        ({"style": "tags", "quality": "fast"}, "no use for quality and style: leave it out"),
        ({"temperature": 0.5, "seed": 1}, "temperature and seed would change nothing.*do_sample to true"),
        ({"do_sample": True, "num_beams": 3}, "num_beams would change nothing.*do_sample to false"),
    ):
        with pytest.raises(BadInput, match=names):
            model.generate(path, **settings)


def test_prompts_and_settings_can_be_pickled(model, pairs: Path) -> None:
    prompt = model.generate(pairs / "1.png", decoding=BEAMS)
    again = pickle.loads(pickle.dumps(prompt))
    assert again.text == prompt.text
    np.testing.assert_array_equal(again.embedding, prompt.embedding)
    asked = Request(DecodingChanges(num_beams=2, forbid=("cat",)), prompt="a", terms=(Path("a.txt"),))
    for settings in (asked, LoadOptions(precision="bf16"), Finish(prefix="sks"), BEAMS):
        assert pickle.loads(pickle.dumps(settings)) == settings
    assert hash(asked) == hash(replace(asked))


@pytest.mark.parametrize("precision", ["float64", "fp32", "bf16"])
@pytest.mark.parametrize("family", ["blip", "clip_prefix"])
def test_a_model_can_be_copied_after_use(
    tiny_checkpoint, pairs: Path, monkeypatch: pytest.MonkeyPatch, family: str, precision: str
) -> None:
    """torch neither pickles nor copies what it has traced or packed."""
    monkeypatch.setattr(compute.packed, "LARGE", 0)  # as large models are packed on any processor
    used = captioner.load(tiny_checkpoint(family), device="cpu", precision=precision)
    prompt = used.generate(pairs / "1.png", num_candidates=2)
    for again in (pickle.loads(pickle.dumps(used)), copy.deepcopy(used)):
        check_same(again.generate(pairs / "1.png", num_candidates=2), prompt)


def test_an_ensemble_can_be_copied_after_use(tiny_checkpoint, pairs: Path, tmp_path: Path) -> None:
    """With indices, one of which FAISS searches in memory that is not its own."""
    members = [
        {"model": str(tiny_checkpoint("direct"))},
        {"model": str(tiny_checkpoint("clip_prefix")), "expected": True},
    ]
    for name, graph in (("exact", False), ("linked", True)):
        weights = str(tiny_checkpoint("towers") / "vit")
        build([pairs], tmp_path / name, Recipe("vit", weights, k=2, graph=graph), LoadOptions(device="cpu"))
        members.append({"model": name})
    (tmp_path / "ensemble.json").write_text(json.dumps({"kind": "ensemble", "members": members}))
    used = captioner.load(tmp_path / "ensemble.json", device="cpu", precision="fp32")
    pictures = [pairs / "1.png", pairs / "2.png"]
    vectors = used.embed(pictures)
    copies = [pickle.loads(pickle.dumps(used)), copy.deepcopy(used)]
    del used
    for again in copies:
        np.testing.assert_allclose(again.embed(pictures), vectors, atol=1e-3)


def check_same(prompt: captioner.Prompt, other: captioner.Prompt) -> None:
    """Texts and scores, but for the last digits, in which products of weights that lie elsewhere may differ."""
    assert [one.text for one in prompt.candidates] == [one.text for one in other.candidates]
    assert [one.score for one in prompt.candidates] == pytest.approx([one.score for one in other.candidates], rel=1e-3)


def test_an_interrogator_can_be_copied_before_and_after_its_parts_are_loaded(
    tiny_checkpoint, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTIONER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "terms.txt").write_text("oil\nred cat\nblue dog\n")
    parts = {"caption_model": tiny_checkpoint("blip"), "clip_model": tiny_checkpoint("clip")}
    model = captioner.load("interrogator", **parts, device="cpu")
    asked = {"mode": "fast", "terms": [tmp_path / "terms.txt"]}
    new = [pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
    prompt = model.generate(pairs / "1.png", **asked)
    for again in (*new, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        check_same(again.generate(pairs / "1.png", **asked), prompt)
        assert again.speaker.ranker.limit == model.speaker.ranker.limit


def test_a_loaded_model_goes_to_another_process() -> None:
    pictures = sorted(EXAMPLES.glob("*.jpg"))[:2]
    mini = captioner.load("mini")
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        theirs = other.submit(mini.generate, pictures, quality="fast").result()
    for prompt, ours in zip(theirs, mini.generate(pictures, quality="fast"), strict=True):
        check_same(prompt, ours)


def test_public_types_tell_their_types() -> None:
    for name in captioner.__all__:
        typing.get_type_hints(getattr(captioner, name))
    for method in (Captioner.generate, Captioner.embed):
        assert "images" in typing.get_type_hints(method)


def test_what_is_no_picture(model, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"cat\.png"):
        model.generate("cat.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(BadImage, match=r"broken\.png"):
        model.generate([tmp_path / "broken.png"])


# --- options that a model has no use for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [{"load_in": "4bit"}, {"trust_remote_code": True}, {"caption_model": "blip"}, {"clip_model": "some/clip"}]
)
def test_an_option_that_the_model_has_no_use_for_is_refused_by_name(tiny_checkpoint, option) -> None:
    for name in ("mini", str(tiny_checkpoint("blip")), str(tiny_checkpoint("direct")), "openai:http://localhost:9"):
        with pytest.raises(BadInput, match=f"no use for {next(iter(option))}"):
            captioner.load(name, **option)


def test_an_option_of_the_interrogator_is_refused_by_its_captioner_alone(tiny_checkpoint) -> None:
    """Its captioner is loaded when the first picture comes, and may be one of the Hub."""
    settings = {"caption_model": str(tiny_checkpoint("blip")), "clip_model": "some/clip"}
    assert captioner.load("interrogator", **settings).speaker.captioner.speaks
    with pytest.raises(BadInput, match=r"blip.* has no use for trust_remote_code"):
        _ = captioner.load("interrogator", trust_remote_code=True, **settings).speaker.captioner


def test_an_option_of_an_ensemble_may_be_for_one_member(tiny_checkpoint, tmp_path: Path) -> None:
    members = [{"model": str(tiny_checkpoint(name))} for name in ("direct", "git")]
    for file, models in (("both.json", members), ("one.json", members[:1])):
        (tmp_path / file).write_text(json.dumps({"kind": "ensemble", "members": models}))
    assert captioner.load(str(tmp_path / "both.json"), trust_remote_code=True).embedder.models
    with pytest.raises(BadInput, match=r"one\.json has no use for trust_remote_code"):
        captioner.load(str(tmp_path / "one.json"), trust_remote_code=True)


@pytest.mark.parametrize("images", [None, 5, [None], [5]])
def test_what_is_no_picture_is_named(images: object) -> None:
    with pytest.raises(
        BadInput, match=r"(NoneType|int) is no picture: give a path, a PIL image, an array, bytes or an"
    ):
        captioner.load("mini").generate(images)


def test_threads_may_load_at_the_same_time(tiny_checkpoint) -> None:
    folder = str(tiny_checkpoint("blip"))
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(captioner.load, 4 * [folder]))
    assert len({model.generate([Image.new("RGB", (40, 30), "teal")])[0].text for model in loaded}) == 1


def test_weights_whose_link_leads_nowhere_are_none(tiny_checkpoint, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint("blip"), tmp_path / "blip")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadCheckpoint, match="has no weights"):
        captioner.load(str(folder))


def test_no_picture_is_no_vector_or_a_sentence(tiny_checkpoint) -> None:
    speaks, embeds = (captioner.load(str(tiny_checkpoint(name)), device="cpu") for name in ("blip", "direct"))
    assert speaks.generate([]) == []
    assert speaks.embed([]).shape == (0, 384)
    assert speaks.embed([], expected=True, num_candidates=2).shape == (0, 384)
    for give in (embeds.embed, embeds.vectors):
        with pytest.raises(BadInput, match="no picture to embed"):
            give([])


def test_a_model_of_vectors_alone_refuses_settings_by_name(tiny_checkpoint, pairs: Path) -> None:
    embeds = captioner.load(tiny_checkpoint("direct"))
    assert embeds.vectors(str(pairs / "1.png")).shape == (1, 384)
    with pytest.raises(BadInput, match="has no use for num_beams"):
        embeds.embed(pairs / "1.png", num_beams=2)
    with pytest.raises(TypeError, match="did you mean num_beams"):
        embeds.embed(pairs / "1.png", num_beam=2)


def test_a_text_is_no_list_of_letters(model) -> None:
    assert model.embed_texts(["a cat"]).shape == (1, 384)
    with pytest.raises(BadInput, match=r"even one: \['a cat'\]"):
        model.embed_texts("a cat")
