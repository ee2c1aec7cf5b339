"""The recipe of mini (cleaning, split, head, blur, schedule), and the bundled model that came of it."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioner import pipeline
from captioner.contracts import LoadOptions
from captioner.decoding import Decoding
from captioner.errors import BadCheckpoint, BadInput
from captioner.models.parts.checkpoint import read_model
from captioner.models.prefix import clip_prefix, mini
from captioner.models.prefix.layers import FAST
from captioner.run import lastresort
from captioner.text.embedding import text_embedder
from tests.disk import files_of_at_most
from training.mini import gist, head, language, reward, saving, sources, split
from training.mini.__main__ import main


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("A Castle, 8K, ((sharp focus:1.3)), on ArtStation --ar 16:9", "a castle, sharp focus, on artstation"),
        ("sci-fi close-up  ,,  3 5 mm photo <lora:x:0.8>", "sci-fi close-up, 35 mm photo"),
        ("café by [John | Jane] https://a.b/c::2", "cafe by john jane"),
        ("4k uhd, 1920x1080", ""),
    ],
)  # fmt: skip
def test_cleaning(raw, clean):
    assert sources.clean(raw) == clean
    assert sources.clean(clean) == clean


def test_long_prompts_end_at_a_comma():
    text = sources.clean(", ".join(f"word{number}" for number in range(60)))
    assert len(text) <= sources.LONGEST
    assert text.split(", ")[-1].startswith("word")


def test_what_is_cut_off_a_long_prompt_becomes_parts():
    text = ", ".join(f"word{number} of the long prompt" for number in range(20))
    parts = sources.parts(f"{text}, 8k")
    assert f"{sources.clean(text)}, {', '.join(parts)}" == text
    assert all(sources.SHORTEST_PART < len(part) <= sources.LONGEST for part in parts)
    assert sources.parts("a castle") == []


def test_thinning_spares_the_small_lists():
    found = [("huge", f"a {n}") for n in range(50)] + [("small", f"b {n}") for n in range(5)]
    kept = sources.thinned(list(found), 10, seed=1)
    assert [source for source, _ in kept].count("huge") == 10
    assert [source for source, _ in kept].count("small") == 5
    assert kept == sources.thinned(list(found), 10, seed=1)


def test_a_prompt_of_several_lists_comes_once(tmp_path):
    (tmp_path / "prompts").mkdir()
    for name, lines in (("a.x", "a fox\nA Fox,\nabc\na hen\n"), ("b", "a fox\na duck\n")):
        with gzip.open(tmp_path / f"prompts/{name}.txt.gz", "wt") as stream:
            stream.write(lines)
    assert list(sources.prompts(tmp_path)) == [("a", "a fox"), ("a", "a hen"), ("b", "a duck")]


def test_near_copies_are_told_in_every_part_of_many_texts():
    texts = np.eye(4, dtype=np.float16)[np.arange(20_003) % 4]
    held_out = np.array([[0, 1, 0, 0], [0, 0, 0.91, 0.1]], dtype=np.float32)
    assert sources.clear_of(held_out, texts).tolist() == [number % 4 in (0, 3) for number in range(20_003)]


@pytest.mark.parametrize(("stage", "first"), [("head", "texts"), ("language", "split"), ("gist", "split")])
def test_a_stage_too_early_names_the_one_to_run_first(stage, first, tmp_path, monkeypatch, capsys):
    data, work = tmp_path / "data", tmp_path / "work"
    (data / "pairs").mkdir(parents=True)
    (data / "pairs" / "drawn.parquet").touch()
    monkeypatch.setattr("sys.argv", ["mini", stage, "--data", str(data), "--work", str(work)])
    with pytest.raises(SystemExit) as stopped:
        lastresort.run("training.mini", main)
    assert stopped.value.code == 2
    assert f"is missing: run stage `{first}` first." in capsys.readouterr().err


def test_a_wrong_data_folder_is_named(tmp_path):
    with pytest.raises(BadInput, match="pairs holds no"):
        sources.pair_files(tmp_path)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_near_prompts_are_one_group_and_never_split():
    random = np.random.default_rng(0)
    seeds = unit(random.normal(size=(40, 384)))
    embeddings = np.concatenate([seeds, unit(seeds + 0.01 * random.normal(size=seeds.shape))])
    group = split.groups(embeddings)
    assert len(set(group)) == 40
    chosen = split.choose(group, dict.fromkeys(range(80), "captions"), {"captions": split.CHOSEN_FROM_CAPTIONS})
    assert 0 < chosen.sum() <= split.CHOSEN_FROM_CAPTIONS
    assert (chosen[:40] == chosen[40:]).all()
    held_out = seeds[:3]
    assert (~sources.clear_of(held_out, embeddings)).nonzero()[0].tolist() == [0, 1, 2, 40, 41, 42]


def test_what_is_near_a_held_back_prompt_is_held_back_too():
    """Also where it is of a kind that is not chosen from."""
    prompts = np.eye(400, dtype=np.float32)
    near = split.unit(prompts[:399] + 0.4 * prompts[1:])  # cosine 0.93 to one, and under 0.75 to all others
    texts = split.Texts(
        list(map(str, range(799))), np.concatenate((prompts, near)), np.zeros(0), np.arange(799),
        ["made"] * 400 + ["fooocus-styles"] * 399, ["first"] * 400 + ["fooocus-styles"] * 399,
    )  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, rtol=1e-6)
    chosen = split.chosen_texts(texts)
    assert chosen[:400].sum() == split.CHOSEN_FROM_PROMPTS
    assert chosen[400:].tolist() == chosen[:399].tolist()


def test_of_each_kind_no_more_is_held_back_than_asked():
    group = np.array([0, 0, 1, 2, 2, 2, 3, 4, *[5] * 31, 6])
    kinds = dict.fromkeys(range(8), "prompts") | dict.fromkeys(range(8, 39), "large") | {7: "styles"}  # 39 has none
    for seed in range(20):
        chosen = split.choose(group, kinds, {"prompts": 4, "large": 99, "styles": 1}, seed)
        assert 2 <= chosen[:7].sum() <= 4
        assert chosen[7:].nonzero()[0].tolist() == [0]


@pytest.fixture
def pairs() -> split.Pairs:
    """Pictures whose statistics tell their prompt's embedding, three pictures a prompt."""
    random = np.random.default_rng(1)
    texts = 240
    embeddings = unit(random.normal(size=(texts, 16)))
    prompt = np.repeat(np.arange(texts), 3)
    features = embeddings[prompt] @ random.normal(size=(16, 160)) + 0.05 * random.normal(size=(len(prompt), 160))
    validation = np.arange(texts) % 6 == 0
    return split.Pairs(features.astype(np.float16), prompt, ["made"] * len(prompt), [str(n) for n in range(texts)],
                       embeddings, np.arange(texts), validation)  # fmt: skip


def test_the_head_finds_what_the_statistics_tell(pairs, monkeypatch):
    monkeypatch.setattr(head, "RIDGE", 1.0)
    fitted = head.fit(head.Examples(pairs, np.flatnonzero(~pairs.validation[pairs.prompt])))
    unseen = pairs.validation[pairs.prompt]
    with torch.no_grad():
        found = fitted(torch.from_numpy(pairs.features[unseen]).float()).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (found * pairs.embeddings[pairs.prompt[unseen]]).sum(1).mean() > 0.85


def test_a_prompt_counts_once_however_many_pictures_it_has(pairs):
    pairs.prompt[:30] = 0
    assert pairs.weights()[pairs.prompt == 0].sum() == pytest.approx(1)


def test_style_studies_and_photographs_weigh_little(pairs):
    pairs.source[:3] = ["flickr8k"] * 3
    weights = head.importance(pairs)
    assert weights[0].item() == pytest.approx(head.WEIGHTS["flickr8k"] * 3**-0.5)
    assert weights[3].item() == pytest.approx(3**-0.5)


def test_blur_has_the_shape_of_the_heads_errors(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(head, "RIDGE", 1.0)
    monkeypatch.setattr(head, "BLUR_RIDGE", 0.1)
    guesses = head.guesses_on_unseen(pairs, head.principal_axes(head.Examples(pairs, np.arange(len(pairs.prompt)))))
    np.savez(tmp_path / "blur.npz", **head.measure_blur(pairs, guesses))
    blur = language.Blur(tmp_path / "blur.npz")
    truth = torch.from_numpy(pairs.embeddings)
    full = truth @ blur.keep + blur.offset + torch.randn(truth.shape) @ blur.noise
    unseen = ~pairs.validation[pairs.prompt]
    of_guesses = (guesses * truth[pairs.prompt]).sum(1)[unseen].mean().item()
    assert torch.nn.functional.cosine_similarity(full, truth).mean().item() == pytest.approx(of_guesses, abs=0.05)
    mixed = blur(truth, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(len(truth)))


def test_every_text_comes_once_an_epoch_and_twice_where_said(monkeypatch):
    monkeypatch.setattr(language, "BATCH", 4)
    epoch = islice(language.batches([3, 9, 4, 7, 5, 8], [1, 2, 1, 1, 2, 1], seed=0), 2)
    assert sorted(row for batch in epoch for row in batch) == [0, 1, 1, 2, 3, 4, 4, 5]


def test_the_rate_rises_stays_and_falls():
    rates = [language.learning_rate(step, 4000) for step in range(4000)]
    assert max(rates) == language.PEAK_RATE == rates[1000]
    assert rates[0] < rates[100] < rates[200]
    assert rates[2500] > rates[3500] > rates[3999] > 0


def test_the_vocabulary_gives_clean_text_back():
    lines = ["a red fox, oil painting", "35mm photo of sci-fi city"] * 20
    tokenizer = language.train_tokenizer(lines)
    assert tokenizer.token_to_id(language.END) == 0
    for text in lines[:2]:
        assert tokenizer.decode(tokenizer.encode(text).ids).strip() == text


def test_gists_tell_embeddings_that_add_up(monkeypatch):
    monkeypatch.setattr(gist, "RIDGE", 1e-6)
    random = np.random.default_rng(0)
    tokens = random.normal(size=(30, 16))
    texts = [random.integers(0, 30, size=random.integers(1, 9)).tolist() for _ in range(200)]
    embeddings = np.stack([tokens[ids].sum(0) / len(ids) ** 0.5 for ids in texts])
    np.testing.assert_allclose(gist.fit(gist.bags(texts, 30), embeddings), tokens, atol=1e-3)


BUNDLED = Path(clip_prefix.__file__).parents[2] / "bundled" / "mini"
PICTURES = Path(__file__).parents[3] / "examples" / "pictures"
FEW = 3
"""Photographs that are enough where a model is compared with itself: two threads share them unevenly."""


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted(PICTURES.glob("*.jpg"))]


def test_the_bundled_model_is_small_and_says_what_it_learnt_from():
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 40e6
    learnt = json.loads((BUNDLED / "training_data.json").read_text())
    assert "discord-stable-diffusion-2022" in learnt["sources"]
    assert len(learnt["fingerprints"]) > 5000
    assert not any("heldout" in source for source in learnt["sources"])


def test_it_captions_at_once_as_one_by_one_and_every_picture_differently(photographs):
    captioner = pipeline.load("mini", device="cpu")
    at_once = [prompt.text for prompt in captioner.generate(photographs, quality="fast")]
    assert at_once[:FEW] == [captioner.generate([one], quality="fast")[0].text for one in photographs[:FEW]]
    assert len(set(at_once)) == len(photographs)
    assert all(len(text.split()) > 1 for text in at_once)


@pytest.mark.parametrize("settings", [{}, {"seed": None}, {"do_sample": False, "num_beams": 2}])
def test_side_by_side_it_says_what_it_says_in_turn(photographs, settings):
    captioner = pipeline.load("mini", device="cpu")
    before = torch.get_num_threads()
    said = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(3)
            said.append([prompt.text for prompt in captioner.generate(photographs[:FEW], max_new_tokens=8, **settings)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert said[0] == said[1]


def test_autocast_of_the_caller_changes_nothing(photographs):
    said = []
    for is_on in (True, False):  # what is traced within it is used outside
        captioner = pipeline.load("mini", device="cpu")
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            said.append([prompt.candidates for prompt in captioner.generate(photographs[:FEW], max_new_tokens=8)])
    assert said[0] == said[1]


def test_fast_writes_few_texts_and_embeds_none(photographs, monkeypatch):
    captioner = pipeline.load("mini", device="cpu")
    best, chosen = captioner.generate(photographs[0]), captioner.generate(photographs[0], quality="fast")
    assert len(best.candidates) > FAST
    assert len(captioner.generate(photographs[0], quality="fast", num_candidates=6).candidates) > FAST
    monkeypatch.setattr(captioner, "judge", None)
    fast = captioner.generate(photographs[0], quality="fast")
    assert fast.text == chosen.text
    assert len(fast.candidates) <= FAST
    with pytest.raises(BadInput, match="no quality 'slow'"):
        captioner.generate(photographs[0], quality="slow")


def test_another_embedder_expects_without_the_predicted_embedding(photographs):
    captioner = pipeline.load("mini", device="cpu", embedder="mpnet")
    captioner.embed_texts = lambda texts: np.eye(8, dtype=np.float32)[[len(text) % 8 for text in texts]]
    assert captioner.embed(photographs[:1], expected=True).shape == (1, 8)


def test_lean_and_full_class_are_one_model(photographs):
    decoding = Decoding(num_beams=3, num_return_sequences=2, max_new_tokens=12)
    lean, full = (module.load(BUNDLED, LoadOptions(device="cpu")) for module in (mini, clip_prefix))
    assert lean.model.traced != super(mini.Mini, lean.model).gpt2  # no Python between the operators of a step
    for ours, theirs in zip(*(each.read_images(photographs[:FEW], decoding) for each in (lean, full)), strict=True):
        assert [each.text for each in ours.candidates] == [each.text for each in theirs.candidates]
        np.testing.assert_allclose(
            [each.score for each in ours.candidates], [each.score for each in theirs.candidates], rtol=1e-4
        )
        np.testing.assert_allclose(ours.gists, theirs.gists, atol=1e-5)
        np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-5)


def test_a_step_is_traced_when_that_pays(photographs):
    speaker, decoding = mini.load(BUNDLED, LoadOptions(device="cpu")), Decoding(max_new_tokens=8)
    [first] = speaker.read_images(photographs[:1], decoding)
    assert "traced" not in vars(speaker.model)
    speaker.model.steps = speaker.model.traced_after
    [later] = speaker.read_images(photographs[:1], decoding)
    assert "traced" in vars(speaker.model)
    assert later.candidates == first.candidates


def test_it_starts_without_transformers():
    code = (
        "import sys; from captioner.pipeline import load; p = load('mini', device='cpu').generate([sys.argv[1]])[0];"
        "assert p.text and p.embedding.shape == (384,); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(PICTURES / "cat.jpg")], check=True)


def test_texts_nearer_to_the_truth_become_likelier():
    torch.manual_seed(0)
    model = read_model(clip_prefix.ClipPrefix, BUNDLED)
    processor, embed = clip_prefix.load_processor(BUNDLED, model), text_embedder()
    truth = torch.from_numpy(embed(["a black and white photograph of a cat"])).repeat(4, 1)
    given = torch.nn.functional.normalize(truth + torch.from_numpy(embed(["a city at night, oil painting"])), dim=-1)
    guesses = reward.Guesses(given, truth, given + truth)
    optimizer = torch.optim.AdamW([*model.mapper.parameters(), *model.gpt.parameters()], lr=4e-4)
    before, gained = reward.Quick(model).model, []
    for step in range(4):
        loss, figures = reward.policy_loss(model, before, processor, embed, guesses, seed=step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        gained.append(figures[reward.GAINED.index("true")])
    assert gained[-1] > gained[0] + 0.02


def test_a_text_counts_by_what_it_adds_to_the_mean_and_to_the_one_that_is_chosen():
    rewards, to_guess = torch.rand(2, 2, 5, generator=torch.Generator().manual_seed(0))
    advantages = reward.advantages(rewards, to_guess)
    for row in range(2):
        for mine in range(5):
            others = [text for text in range(5) if text != mine]
            won = []
            for rivals in itertools.combinations(others, reward.CHOSEN_OF - 1):
                nearest = max(rivals, key=lambda text: to_guess[row, text])
                won.append(
                    (rewards[row, mine] - rewards[row, nearest]) * (to_guess[row, mine] > to_guess[row, nearest])
                )
            expected = reward.OF_MEAN * (rewards[row, mine] - rewards[row, others].mean()) + sum(won) / len(won)
            assert advantages[row, mine].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_quick_copy_computes_and_the_model_learns():
    model = read_model(clip_prefix.ClipPrefix, BUNDLED)
    processor = clip_prefix.load_processor(BUNDLED, model)
    quick = reward.Quick(model)
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor([*processor.encode(text), reward.END]) for text in ("a cat", "a city at night")], True, -100
    )
    given = torch.nn.functional.normalize(torch.ones(2, 384), dim=-1)
    loss = reward.surprise(quick.model, given, tokens).sum() / (tokens >= 0).sum()
    expected = model(features=given, input_ids=tokens.clamp(min=0), labels=tokens).loss
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    loss.backward()
    quick.give_gradients()
    word = model.gpt.transformer.wte.weight
    assert word.grad is not None
    assert word.grad.dtype == torch.float32
    torch.optim.SGD([word], lr=1.0).step()
    quick.take_weights()
    copied = quick.model.gpt.lm_head.weight
    assert torch.equal(copied, word.to(copied.dtype))


def test_a_damaged_bundle_is_named(tmp_path):
    for file in BUNDLED.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:5000])
    with pytest.raises(BadCheckpoint, match="Reinstall"):
        mini.load(tmp_path, LoadOptions(device="cpu"))


def test_what_a_stage_leaves_is_whole_or_not_there(tmp_path):
    saving.save_array(tmp_path / "a.npy", np.arange(3))
    saving.save_arrays(tmp_path / "b.npz", one=np.arange(2), two=np.arange(4))
    saving.save_state(tmp_path / "c.pt", {"weight": torch.ones(2)})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npy", "b.npz", "c.pt"]
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.arange(3))
    np.testing.assert_array_equal(np.load(tmp_path / "b.npz")["two"], np.arange(4))
    assert torch.equal(torch.load(tmp_path / "c.pt", weights_only=True)["weight"], torch.ones(2))
    with pytest.raises(TypeError):
        saving.save_state(tmp_path / "c.pt", {"weight": (part for part in ())})  # fails halfway
    assert torch.equal(torch.load(tmp_path / "c.pt", weights_only=True)["weight"], torch.ones(2))
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        saving.save_array(tmp_path / "a.npy", np.zeros(100_000))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.arange(3))
    assert len(list(tmp_path.iterdir())) == 3
