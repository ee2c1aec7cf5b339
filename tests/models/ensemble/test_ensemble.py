"""Ensembles: the weighted sum, fitted weights and what they gain, the file, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from captioner import pipeline
from captioner.cli.main import app
from captioner.contracts import LoadOptions, Request
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint, BadInput, BadOutput
from captioner.models.direct import DirectModel
from captioner.models.ensemble import ensemble
from captioner.models.ensemble import fit as fitting
from captioner.models.ensemble.ensemble import Member
from captioner.models.ensemble.fit import Fit
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.preprocess import Preprocess
from captioner.pairs import sources
from captioner.pairs.fingerprint import fingerprint
from captioner.text.embedding import text_embedder
from captioner.text.finish import Finish
from tests.tiny.direct import TOWER

CPU = LoadOptions(device="cpu", precision="fp32")


def save_direct(folder: Path, seed: int, **settings) -> Path:
    torch.manual_seed(seed)
    DirectModel.on(backbones.blank("vit", Preprocess(32), **TOWER), **settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Two direct models, `one` and `two`, in one folder."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        save_direct(folder / name, seed)
    return folder


@pytest.fixture
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (33, 37, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve pictures with prompts, a caption file beside each."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(1)
    for number in range(12):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture of {number} things")
    return folder


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def write(file: Path, members: list[dict], **more) -> Path:
    file.write_text(json.dumps({"kind": "ensemble", "members": members, **more}), encoding="utf-8")
    return file


# --- the weighted sum -------------------------------------------------------------------------------------------------


def test_the_sum_of_unit_vectors_as_weighted(models, pictures, tmp_path):
    file = models / "pair.json"
    ensemble.save(file, [Member(str(models / "one"), 1.0), Member(str(models / "two"), 3.0)])
    one, two = (pipeline.load(str(models / name), CPU).embed(pictures) for name in ("one", "two"))
    found = pipeline.load(str(file), CPU)  # by its path, as any model
    assert not found.speaks
    np.testing.assert_allclose(found.embed(pictures), unit(0.25 * one + 0.75 * two), atol=1e-6)
    assert found.embed(pictures).dtype == np.float32


def test_members_are_found_from_the_file_wherever_it_is_moved(models, pictures, tmp_path):
    folder = tmp_path / "before"
    shutil.copytree(models / "one", folder / "one")
    ensemble.save(folder / "mine.json", [Member(str(folder / "one"))])
    assert json.loads((folder / "mine.json").read_text())["members"][0]["model"] == "one"
    expected = pipeline.load(str(folder / "mine.json"), CPU).embed(pictures)
    folder.rename(tmp_path / "after")
    found = pipeline.load(str(tmp_path / "after" / "mine.json"), CPU)
    np.testing.assert_array_equal(found.embed(pictures), expected)


def test_by_norm_the_surer_member_counts_more(models, pictures, tmp_path):
    members = [{"model": str(models / "one"), "norm": 2.0}, {"model": str(models / "two"), "norm": 0.5}]
    file = write(tmp_path / "e.json", members, by_norm=True)
    one, two = (pipeline.load(str(models / name), CPU).embedder.vectors(pictures) for name in ("one", "two"))
    expected = unit(0.5 * one / 2.0 + 0.5 * two / 0.5)
    np.testing.assert_allclose(pipeline.load(str(file), CPU).embed(pictures), expected, atol=1e-6)


def test_members_of_weight_zero_are_not_loaded(models, pictures, tmp_path):
    members = [{"model": str(models / "one")}, {"model": "no-such-model", "weight": 0}]
    found = pipeline.load(str(write(tmp_path / "e.json", members)), CPU)
    assert [member.model for member in found.embedder.members] == [str(models / "one")]
    assert ensemble.files_of(str(tmp_path / "e.json")) == [tmp_path / "e.json", models / "one"]


def test_an_ensemble_may_hold_another_but_not_itself(models, pictures, tmp_path):
    inner = write(tmp_path / "inner.json", [{"model": str(models / "one")}])
    outer = write(tmp_path / "outer.json", [{"model": "inner.json"}])
    expected = pipeline.load(str(models / "one"), CPU).embed(pictures)
    np.testing.assert_allclose(pipeline.load(str(outer), CPU).embed(pictures), expected, atol=1e-6)
    write(inner, [{"model": "outer.json"}])
    with pytest.raises(BadInput, match="member of itself"):
        ensemble.files_of(str(outer))
    with pytest.raises(BadInput, match="member of itself"):
        pipeline.load(str(outer), CPU)
    write(inner, [{"model": str(models / "one")}])
    pipeline.load(str(outer), CPU)  # a failed load leaves nothing behind


def test_captioners_take_part_by_what_they_say(tiny_checkpoint, models, pictures, tmp_path):
    """As the text they choose, or as the mean of all their candidates weighted by probability."""
    folder = str(tiny_checkpoint("blip"))
    speaker = pipeline.load(folder, CPU)
    for expected in (False, True):
        members = [{"model": folder, "expected": expected}, {"model": str(models / "one")}]
        found = pipeline.load(str(write(tmp_path / f"{expected}.json", members)), CPU).embed(pictures[:2])
        if expected:
            said = [reading.candidates for reading in speaker.readings(pictures[:2], Request(_all_beams(speaker)))]
            texts = [[Finish().text(c.text, c.finished) for c in candidates] for candidates in said]
            share = [np.exp([c.score for c in candidates]) for candidates in said]
            spoken = np.stack([s / s.sum() @ text_embedder()(t) for s, t in zip(share, texts, strict=True)])
        else:
            spoken = text_embedder()([prompt.text for prompt in speaker.generate(pictures[:2])])
        direct = pipeline.load(str(models / "one"), CPU).embed(pictures[:2])
        np.testing.assert_allclose(found, unit(unit(spoken) + direct), atol=1e-4)


def test_an_expected_embedding_of_one_text_is_refused(tiny_checkpoint, pictures, tmp_path):
    speaker = pipeline.load(str(tiny_checkpoint("blip")), CPU)
    speaker.decoding = Decoding(num_beams=1)
    with pytest.raises(BadInput, match="expected would change nothing: "):
        ensemble.member_vectors([Member("blip", expected=True)], [speaker], pictures[:1], by_norm=False)


def test_a_folder_may_be_called_like_a_model_of_the_zoo(models, pictures, tmp_path):
    shutil.copytree(models / "one", tmp_path / "mini")
    ensemble.save(tmp_path / "e.json", [Member(str(tmp_path / "mini"))])
    found = pipeline.load(str(tmp_path / "e.json"), CPU).embed(pictures)
    np.testing.assert_allclose(found, pipeline.load(str(models / "one"), CPU).embed(pictures), atol=1e-6)


def test_an_expected_embedding_is_of_many_candidates():
    def count(**own) -> int:
        return ensemble.with_candidates(SimpleNamespace(decoding=Decoding(**own))).decoding.num_return_sequences

    assert count(num_beams=5) == 5
    assert count(do_sample=True, num_return_sequences=8) == 32
    assert count(do_sample=True, num_return_sequences=50) == 50


def _all_beams(speaker):
    from dataclasses import replace

    assert speaker.decoding.num_beams > 1
    return replace(speaker.decoding, num_return_sequences=speaker.decoding.num_beams)


# --- fitting ----------------------------------------------------------------------------------------------------------


def noisy_members(noise: list[float], count: int = 300, dims: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """The truth, and members that see it through independent noise."""
    random = np.random.default_rng(5)
    truth = unit(random.standard_normal((count, dims)))
    return unit(truth + random.standard_normal((len(noise), count, dims)) * np.array(noise)[:, None, None]), truth


def test_fitted_weights_are_the_best_on_the_simplex():
    vectors, truth = noisy_members([0.2, 0.3, 0.5])
    fit = Fit(vectors, truth, np.arange(300))
    weights = fit.weights()
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > weights[1] > weights[2] > 0
    grid = [np.array([a, b, 20 - a - b]) / 20 for a in range(21) for b in range(21 - a)]
    reached = fit.cosines(weights).mean()
    assert reached >= max(fit.cosines(point).mean() for point in grid) - 1e-9
    direct = unit(np.tensordot(weights, vectors, axes=1))
    assert reached == pytest.approx((direct * truth).sum(1).mean())


@pytest.mark.parametrize("seed", range(10))
def test_no_better_weights_lie_near_those_that_are_fitted(seed):
    """Members of any quality, one that is against the truth among them, and prompts with several pictures."""
    generator = np.random.default_rng(seed)
    members, count = int(generator.integers(2, 7)), 60
    vectors, truth = noisy_members(generator.uniform(0.05, 2, members), count)
    vectors[0] = unit(-truth + 0.3 * vectors[1]) if seed % 2 else vectors[0]
    fit = Fit(vectors, truth, np.arange(count) // 2)
    weights = fit.weights()
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    steps = weights * generator.uniform(0.8, 1.2, (200, members)) + generator.uniform(0, 0.02, (200, members))
    assert fit.cosines(weights).mean() >= max(fit.cosines(other / other.sum()).mean() for other in steps) - 1e-6


def test_a_useless_member_gets_nothing():
    vectors, truth = noisy_members([0.2, 0.2])
    against = -truth[None] + 0.1 * vectors[:1]
    weights = Fit(np.concatenate([vectors, unit(against)]), truth, np.arange(300)).weights()
    assert weights[2] == 0
    assert weights[0] == pytest.approx(0.5, abs=0.1)


def test_the_gain_is_measured_on_prompts_that_were_left_out():
    """Two equal members with independent faults: the mean of them is better, and the interval says so."""
    vectors, truth = noisy_members([0.4, 0.4])
    cosine, gain, (low, high) = Fit(vectors, truth, np.arange(300)).unseen()
    halved = unit(vectors.mean(0))
    assert cosine == pytest.approx((halved * truth).sum(1).mean(), abs=0.01)
    assert 0 < low < gain < high


def test_no_gain_where_there_is_none():
    """Members that know nothing of the truth: fitted and judged on the same prompts there would seem to be a gain."""
    random = np.random.default_rng(3)
    vectors, truth = unit(random.standard_normal((6, 60, 24))), unit(random.standard_normal((60, 24)))
    fit = Fit(vectors, truth, np.arange(60))
    low, high = fit.unseen()[2]
    assert low < 0 < high
    assert fit.cosines(fit.weights()).mean() > fit.alone().max()


def test_a_prompt_with_many_pictures_counts_once():
    random = np.random.default_rng(4)
    truth = unit(random.standard_normal((40, 24)))
    good, bad = unit(truth + 0.1 * random.standard_normal((40, 24))), unit(random.standard_normal((40, 24)))
    vectors = np.stack([np.concatenate([bad[:20], good[20:]]), np.concatenate([good[:20], bad[20:]])])
    rows = np.array([*range(40), *[0] * 500])  # the second member does well on a prompt with 501 pictures
    weights = Fit(vectors[:, rows], truth[rows], rows).weights()
    np.testing.assert_allclose(weights, Fit(vectors, truth, np.arange(40)).weights(), atol=1e-3)


def test_a_fit_from_pictures_to_file(models, data, tmp_path):
    members = [Member(str(models / "one")), Member(str(models / "two"))]
    (data / "broken.png").write_bytes(b"")
    (data / "broken.txt").write_text("broken")
    found = fitting.fit(members, data, tmp_path / "mine.json", pipeline.load, options=CPU)
    assert (found.pictures, found.prompts, found.unreadable) == (12, 12, 1)
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.interval[0] <= found.gain <= found.interval[1]
    saved = json.loads((tmp_path / "mine.json").read_text())
    assert [member["weight"] for member in saved["members"]] == list(found.weights.values())
    assert saved["fitted"]["alone"] == found.alone
    pictures = [Image.open(data / f"{n}.png") for n in range(12)]
    one = pipeline.load(str(models / "one"), CPU).embed(pictures)
    truth = text_embedder()([f"picture of {n} things" for n in range(12)])
    assert found.alone[str(models / "one")] == pytest.approx((one * truth).sum(1).mean(), abs=1e-5)
    vectors = pipeline.load(str(tmp_path / "mine.json"), CPU).embed(pictures)
    assert (vectors * truth).sum(1).mean() >= max(found.alone.values()) - 1e-6


def test_norms_are_learnt_with_the_weights(models, data, tmp_path, pictures):
    fitting.fit([Member(str(models / "one"))], data, tmp_path / "mine.json", pipeline.load, by_norm=True, options=CPU)
    [member] = pipeline.load(str(tmp_path / "mine.json"), CPU).embedder.members
    sure = pipeline.load(str(models / "one"), CPU).embedder.vectors([Image.open(data / f"{n}.png") for n in range(12)])
    assert member.norm == pytest.approx(np.linalg.norm(sure, axis=1).mean(), rel=1e-5)


def test_members_that_have_learnt_from_the_data_are_named(models, data, tmp_path):
    shutil.copytree(models / "one", tmp_path / "one")
    shutil.copytree(models / "two", tmp_path / "two")
    learnt = {"sources": ["elsewhere"], "fingerprints": [fingerprint(f"Picture of {n} things") for n in range(3)]}
    (tmp_path / "two" / "training_data.json").write_text(json.dumps(learnt))
    members = [Member(str(tmp_path / "one")), Member(str(tmp_path / "two"))]
    [warning] = fitting.fit(members, data, tmp_path / "e.json", pipeline.load, options=CPU).warnings
    assert warning.startswith(f"{tmp_path / 'two'} has learnt from these data (3 of the 12 prompts")
    (tmp_path / "one" / "README.md").write_text(f"---\ndatasets: [{data.name}]\n---\n")
    command = ["ensemble", "fit", "--members", str(tmp_path / "one"), "--data", str(data)]
    told = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "f.json"), "--quiet"])
    assert told.exit_code == 0, told.output
    assert f"names {data.name} as training data" in told.stderr


def test_progress_names_the_member_and_what_is_to_come(models, data, tmp_path):
    seen = []
    members = [Member(str(models / "one")), Member(str(models / "two"))]
    fitting.fit(
        members, data, tmp_path / "e.json", pipeline.load, options=CPU, progress=lambda *done: seen.append(done)
    )
    total = sources.read([data]).total()
    assert {(name, of) for name, _, of in seen} == {(member.model, total) for member in members}
    assert sum(done for _, done, _ in seen) == 2 * 12


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0, 0], "All weights are 0"), ([1, -1], "0 or more"), ([1, float("nan")], "0 or more"), ([], "needs members")],
)
def test_weights_that_cannot_be(weights, message, tmp_path):
    members = [Member("mini", weight) for weight in weights]
    with pytest.raises(BadInput, match=message):
        ensemble.save(tmp_path / "e.json", members)
    file = write(tmp_path / "f.json", [{"model": "mini", "weight": weight} for weight in weights])
    with pytest.raises(BadInput, match=message):
        pipeline.load(str(file), CPU)


def test_members_whose_dimensions_differ(models, pictures, tmp_path):
    save_direct(tmp_path / "short", 0, embedding_size=100)
    file = write(tmp_path / "e.json", [{"model": "short"}, {"model": str(models / "one")}])
    with pytest.raises(BadInput, match=r"differ in length: .*100.*384"):
        pipeline.load(str(file), CPU).embed(pictures)


def test_another_length_than_the_embedder(data, tmp_path):
    save_direct(tmp_path / "short", 0, embedding_size=100)
    with pytest.raises(BadInput, match="give 100 numbers, the embedder 384"):
        fitting.fit([Member(str(tmp_path / "short"))], data, tmp_path / "e.json", pipeline.load, options=CPU)


def test_too_few_prompts_to_fit_on(models, data, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("0.png", "0.txt"):
        shutil.copy(data / name, few / name)
    with pytest.raises(BadInput, match="1 readable prompts; weights need at least 10"):
        fitting.fit([Member("no-such-model")], few, tmp_path / "e.json", pipeline.load, options=CPU)
    for number in range(11):
        shutil.copy(data / "0.png", few / f"{number}.png")
        (few / f"{number}.txt").write_text(f"prompt {number}")
    for number in (1, 2):
        (few / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="9 readable prompts; weights need at least 10"):
        fitting.fit([Member(str(models / "one"))], few, tmp_path / "e.json", pipeline.load, options=CPU)
    assert not (tmp_path / "e.json").exists()


def test_a_file_that_is_there_stays(models, data, tmp_path):
    file = write(tmp_path / "e.json", [])
    with pytest.raises(BadOutput, match="already there"):
        fitting.fit([Member(str(models / "one"))], data, file, pipeline.load, options=CPU)
    with pytest.raises(BadOutput, match="already there"):
        ensemble.save(file, [Member("mini")])


def test_where_nothing_can_be_written_is_said_before_a_model_is_loaded(data):
    with pytest.raises(BadOutput, match="/proc"):  # where there is one no user's files are kept in it
        fitting.fit([Member("no-such-model")], data, "/proc/e.json", pipeline.load, options=CPU)


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "ensemble"}', '{"members": [{"model": "a", "colour": 1}]}'])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "e.json").write_text(content)
    for ask in (ensemble.files_of, pipeline.load):
        with pytest.raises(BadCheckpoint):
            ask(str(tmp_path / "e.json"))


def test_members_and_weights_as_the_command_line_gives_them():
    assert ensemble.parse("vit, mini+expected") == [Member("vit"), Member("mini", expected=True)]
    assert ensemble.parse("vit,knn", "3,1") == [Member("vit", 3), Member("knn", 1)]
    with pytest.raises(BadInput, match="Each member needs a weight: there are 2 and 1"):
        ensemble.parse("vit,knn", "3")
    with pytest.raises(BadInput, match="Weights are numbers"):
        ensemble.parse("vit,knn", "much,little")
    with pytest.raises(BadInput, match="none is named"):
        ensemble.parse(" ,", "")


def test_the_commands(models, data, tmp_path):
    members, run = ["--members", f"{models / 'one'},{models / 'two'}"], CliRunner().invoke
    fitted = run(app, ["ensemble", "fit", *members, "--data", str(data), "--out", str(tmp_path / "f.json")])
    assert fitted.exit_code == 0, fitted.output
    assert "gain over the best member" in fitted.output
    made = run(app, ["ensemble", "make", *members, "--weights", "1,3", "--out", str(tmp_path / "m.json")])
    assert made.exit_code == 0, made.output
    saved = json.loads((tmp_path / "m.json").read_text())["members"]
    assert [member["weight"] for member in saved] == [0.25, 0.75]
    refused = run(
        app, ["ensemble", "make", "--members", "mini,nope", "--weights", "1,1", "-o", str(tmp_path / "n.json")]
    )
    assert (refused.exit_code, (tmp_path / "n.json").exists()) == (2, False)
    assert "No model 'nope'" in refused.stderr
