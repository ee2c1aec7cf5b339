"""The search against transformers' own `generate` in float64, and against enumeration with a mock decoder."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation import logits_process as lp

from captioner import compute
from captioner.decoding import Decoding
from captioner.errors import BadInput
from captioner.search import search as search_module
from captioner.search.beams import BLOCK, _top
from captioner.search.draws import draw, draw_in_place, nucleus
from captioner.search.search import Hypothesis, search
from captioner.search.steps import _forbid_repeated
from captioner.search.words import forbidden_sequences
from tests.tiny import blip as tiny_blip

# --- parity with transformers -----------------------------------------------------------------------------------------


def random_decoding(rng: random.Random, beams: list[int]) -> Decoding:
    num_beams = rng.choice(beams)
    longest = rng.randint(1, 12)
    return Decoding(
        num_beams=num_beams,
        num_return_sequences=rng.randint(1, num_beams),
        max_new_tokens=longest,
        min_new_tokens=rng.choice([0, 0, rng.randint(0, longest)]),
        length_penalty=rng.choice([1.0, 1.0, 0.0, 0.6, 2.0, -1.0]),
        early_stopping=rng.choice([False, True, "never"]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.8]),
        no_repeat_ngram_size=rng.choice([0, 0, 1, 2, 3]),
    )


def settings_of(decoding: Decoding) -> dict:
    """The same settings for `generate`."""
    names = ("num_beams num_return_sequences max_new_tokens min_new_tokens repetition_penalty "
             "no_repeat_ngram_size do_sample")  # fmt: skip
    settings = {name: getattr(decoding, name) for name in names.split()}
    if decoding.num_beams > 1:
        settings |= {"length_penalty": decoding.length_penalty, "early_stopping": decoding.early_stopping}
    return settings | {"return_dict_in_generate": True, "output_scores": True}


def cut(sequence: list[int], eos: tuple[int, ...]) -> list[int]:
    end = next((place for place, token in enumerate(sequence) if token in eos), len(sequence))
    return sequence[:end]


def assert_same(found: list[list[Hypothesis]], generated, start: int, processor, decoding: Decoding) -> None:
    ours = [text.ids for of_image in found for text in of_image]
    theirs = [cut(ids, processor.eos_ids) for ids in generated.sequences[:, start:].tolist()]
    assert ours == theirs
    if decoding.num_beams > 1:
        texts = [text for of_image in found for text in of_image]
        lengths = [len(text.ids) + text.finished for text in texts]
        scores = [t.score * n ** (1 - decoding.length_penalty) for t, n in zip(texts, lengths, strict=True)]
        torch.testing.assert_close(torch.tensor(scores), generated.sequences_scores, rtol=1e-4, atol=1e-5)


def blip_case(seed: int):
    """A random BLIP whose end token is neither certain nor out of reach, its pictures and its start."""
    rng = random.Random(seed)
    model = tiny_blip.model(seed).double()
    text = model.config.text_config
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[text.sep_token_id] = rng.uniform(-2, 6)
    start = [text.bos_token_id, *rng.sample(range(5, 60), rng.choice([0, 0, 3]))]
    processor = SimpleNamespace(start_ids=start, eos_ids=(text.sep_token_id,), pad_id=text.pad_token_id)
    pixels = torch.randn(
        rng.randint(1, 4), 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return rng, model, processor, pixels


def generate_blip(model, pixels: Tensor, start: list[int], decoding: Decoding):
    # transformers drops the last id of what it is given: it expects an end token there.
    ids = torch.tensor([[*start, 0]]).repeat(len(pixels), 1)
    return model.generate(pixels, input_ids=ids, **settings_of(decoding))


@pytest.mark.parametrize("seed", range(40))
@torch.inference_mode()
def test_blip_equals_generate(seed: int) -> None:
    rng, model, processor, pixels = blip_case(seed)
    for _ in range(3):
        decoding = random_decoding(rng, [1, 1, 2, 3, 4])
        found = search(model, model.read(pixels), processor, decoding)
        generated = generate_blip(model, pixels, processor.start_ids, decoding)
        assert_same(found, generated, len(processor.start_ids), processor, decoding)


@torch.inference_mode()
def test_parity_cases_are_worth_testing() -> None:
    """Texts differ between images, and some end by themselves while others are cut."""
    differ, finished = 0, []
    for seed in range(12):
        _, model, processor, pixels = blip_case(seed)
        found = search(model, model.read(pixels), processor, Decoding(max_new_tokens=8))
        differ += len({tuple(texts[0].ids) for texts in found}) > 1
        finished += [texts[0].finished for texts in found]
    assert differ >= 5
    assert 0.1 < sum(finished) / len(finished) < 0.9


class PrefixedGpt2(torch.nn.Module):
    """GPT-2 after an image prefix, as plainly as can be: all of the text is read again at every step."""

    def __init__(self, gpt: GPT2LMHeadModel) -> None:
        super().__init__()
        self.gpt, self.device = gpt, torch.device("cpu")

    def step(self, tokens: Tensor, memory, past):
        text = tokens if past is None else torch.cat((past.rows, tokens), dim=1)
        prefix = memory.rows.repeat_interleave(len(tokens) // len(memory), dim=0)
        embedded = torch.cat((prefix, self.gpt.transformer.wte(text)), dim=1)
        return self.gpt(inputs_embeds=embedded).logits[:, -1], Rows(text)


class Rows:
    """A memory or a past that is one tensor."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Tensor) -> Rows:
        return Rows(self.rows[rows])


@pytest.mark.parametrize("seed", range(15))
@torch.inference_mode()
def test_gpt2_with_prefix_equals_generate(seed: int) -> None:
    """Several end tokens, and a start of no text at all: the prefix is not seen by the repetition rules."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    sizes = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, initializer_range=0.6)
    gpt = GPT2LMHeadModel(sizes).double().eval()
    eos = tuple(rng.sample(range(1, 40), rng.randint(1, 4)))
    processor = SimpleNamespace(start_ids=[], eos_ids=eos, pad_id=0)
    prefix = torch.randn(rng.randint(1, 4), 3, 16, dtype=torch.float64)
    for _ in range(2):
        decoding = random_decoding(rng, [1, 2, 3])
        found = search(PrefixedGpt2(gpt), Rows(prefix), processor, decoding)
        generated = gpt.generate(inputs_embeds=prefix, eos_token_id=list(eos), pad_token_id=0, **settings_of(decoding))
        assert_same(found, generated, 0, processor, decoding)


@pytest.mark.parametrize("seed", range(15))
@torch.inference_mode()
def test_a_search_that_does_not_ask_finds_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, model, processor, pixels = blip_case(seed)
    memory, seeds = model.read(pixels), list(range(len(pixels)))
    decodings = [replace(random_decoding(rng, [1, 2, 4]), min_new_tokens=0) for _ in range(4)]
    decodings = [replace(decoding, max_new_tokens=rng.choice([1, 8, 9, 20])) for decoding in decodings]
    decodings.append(Decoding(do_sample=True, num_return_sequences=3, top_p=0.8, top_k=9, seed=1, max_new_tokens=20))
    asked = [search(model, memory, processor, decoding, seeds) for decoding in decodings]
    monkeypatch.setattr(search_module, "_asks_at_once", lambda device: False)
    unasked = [search(model, memory, processor, decoding, seeds) for decoding in decodings]
    assert unasked == asked


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_beams_at_fixed_places_find_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU records, as a CPU does it: the same places for searches of the same sizes, one after the other."""
    rng, model, processor, pixels = blip_case(seed)
    plain = [replace(random_decoding(rng, [2, 4]), repetition_penalty=1.0, no_repeat_ngram_size=0) for _ in range(4)]
    decodings = [replace(decoding, max_new_tokens=rng.choice([8, 9, 20])) for decoding in plain] * 2
    decodings.append(Decoding(num_beams=2, length_penalty=-1, max_new_tokens=8))  # a whole number
    memories = [model.read(pixels if turn % 2 else pixels.flip(0)) for turn in range(len(decodings))]
    monkeypatch.setattr(search_module, "_asks_at_once", lambda device: False)
    cases = list(zip(memories, decodings, strict=True))
    expected = [search(model, memory, processor, decoding) for memory, decoding in cases]
    monkeypatch.setattr(compute, "pays_to_record", lambda x: True)
    found = [search(model, memory, processor, decoding) for memory, decoding in cases]
    texts = [[[(text.ids, text.finished) for text in of_image] for of_image in every] for every in found]
    assert texts == [[[(text.ids, text.finished) for text in of_image] for of_image in every] for every in expected]
    scores = [
        [text.score for every in result for of_image in every for text in of_image] for result in (found, expected)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_sequences_are_forbidden_as_transformers_does(size: int) -> None:
    ids = torch.randint(0, 4, (6, 9), generator=torch.Generator().manual_seed(size))
    scores = torch.randn(6, 5)
    scores[0, 0] = -torch.inf
    theirs = lp.NoRepeatNGramLogitsProcessor(size)
    for length in range(10):
        some = ids[:, :length]
        assert torch.equal(_forbid_repeated(some, scores.clone(), size), theirs(some, scores))


@torch.inference_mode()
def test_sampling_from_one_token_is_greedy_generate() -> None:
    _, model, processor, pixels = blip_case(3)
    decoding = Decoding(num_beams=1, max_new_tokens=8, repetition_penalty=1.2, no_repeat_ngram_size=2)
    generated = generate_blip(model, pixels, processor.start_ids, decoding)
    found = search(model, model.read(pixels), processor, replace(decoding, do_sample=True, top_k=1))
    assert_same(found, generated, len(processor.start_ids), processor, decoding)


# --- the search alone, with a mock decoder ----------------------------------------------------------------------------

END = 0


class Markov:
    """A mock decoder: an image is a table of logits, and the next token depends on the last one alone."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []  # (images, rows) of every step

    def step(self, tokens: Tensor, memory: Rows, past: Rows | None) -> tuple[Tensor, Rows]:
        images, rows = len(memory), len(tokens)
        self.calls.append((images, rows))
        table = memory.rows.repeat_interleave(rows // images, dim=0)  # [rows, tokens, tokens]
        text = tokens if past is None else torch.cat((past.rows, tokens), dim=1)
        return table[torch.arange(rows), text[:, -1]], Rows(text)


LETTERS = "_ abcdefghijklmnopqrstuvwxyz,"


class Letters:
    """A processor that spells letter by letter; `_` ends the text."""

    start_ids, eos_ids, pad_id = [1], (END,), END

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text.lower()]

    def decode(self, ids) -> str:
        return "".join(LETTERS[token] for token in ids).replace("_", "")


def tables(images: int, tokens: int, seed: int = 0) -> Rows:
    return Rows(torch.randn(images, tokens, tokens, generator=torch.Generator().manual_seed(seed)) * 2)


def test_wide_beams_find_what_enumeration_finds() -> None:
    tokens, longest = 4, 4
    memory = tables(3, tokens)
    decoding = Decoding(num_beams=64, max_new_tokens=longest, length_penalty=0.0, early_stopping="never")
    found = search(Markov(), memory, Letters(), decoding)
    log_probs = memory.rows.log_softmax(-1)
    for image, (best,) in enumerate(found):
        totals = {}
        for ids in itertools.product(range(tokens), repeat=longest):
            whole = ids[: ids.index(END) + 1] if END in ids else ids
            totals[whole] = sum(log_probs[image, a, b].item() for a, b in itertools.pairwise((1, *whole)))
        expected = max(totals, key=totals.get)
        assert tuple(best.ids) == tuple(token for token in expected if token != END)
        assert best.score == pytest.approx(totals[expected] / len(expected), abs=1e-5)
        assert best.finished == (END in expected)


def test_memory_is_shared_and_finished_images_leave() -> None:
    memory = tables(6, 8)
    memory.rows[:3, :, END] += 12  # these end at once
    decoder = Markov()
    search(decoder, memory, Letters(), Decoding(num_beams=4, max_new_tokens=10))
    assert decoder.calls[0] == (6, 6)  # the start is read once per image
    assert all(rows == 4 * images for images, rows in decoder.calls[1:])
    assert decoder.calls[-1][0] <= 3


def test_what_goes_on_is_found_behind_ends_that_are_likelier() -> None:
    logits = torch.tensor([0.0, -50.0, 0.0, 0.0, 0.0, -1.0])
    processor = SimpleNamespace(start_ids=[1], eos_ids=(0, 2, 3, 4), pad_id=0)
    decoding = Decoding(num_beams=2, max_new_tokens=3, length_penalty=4.0, early_stopping="never")
    [[best]] = search(Markov(), Rows(logits.repeat(1, 6, 1)), processor, decoding)
    assert best.ids == [5, 5]


@pytest.mark.parametrize("sampling", [False, True])
def test_batch_and_place_do_not_matter(sampling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tables(7, 12, seed=5)
    decoding = Decoding(num_beams=3, num_return_sequences=3, max_new_tokens=9, do_sample=sampling, seed=11)
    seeds = [100 + image for image in range(7)]
    together = search(Markov(), memory, Letters(), decoding, seeds)
    order = [4, 0, 6, 2]
    some = search(Markov(), memory.select(torch.tensor(order)), Letters(), decoding, [seeds[i] for i in order])
    assert some == [together[i] for i in order]
    if sampling:
        other = search(Markov(), memory, Letters(), replace(decoding, seed=12), seeds)
        assert other != together
        monkeypatch.setattr("captioner.search.extend.CACHED", 5 * 12)  # five of 21 rows at once
        assert search(Markov(), memory, Letters(), decoding, seeds) == together


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("vocabulary", "spread"), [(40, 1), (1000, 6), (1000, 0.1)])
def test_top_p_keeps_what_transformers_keeps(top_p: float, vocabulary: int, spread: float) -> None:
    scores = torch.randn(16, vocabulary, generator=torch.Generator().manual_seed(0)) * spread
    scores[3, : vocabulary // 2] = -torch.inf
    theirs = lp.TopPLogitsWarper(top_p)(torch.zeros(16, 1, dtype=torch.long), scores).isfinite()
    tokens, chances = nucleus(scores.softmax(-1).numpy(), top_p)
    for row, kept in enumerate(theirs & (scores > -torch.inf)):
        assert tokens[row][chances[row] > 0].tolist() == kept.nonzero().flatten().tolist()


@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_a_quantile_is_found_in_the_rows_own_distribution(top_p: float) -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(30, 0.1), size=50).astype(np.float32)
    probabilities[7] = np.eye(30)[4]
    quantiles = rng.random(50)
    for token, row, quantile in zip(draw(probabilities, quantiles, top_p), probabilities, quantiles, strict=True):
        descending = np.sort(row)[::-1].astype(np.float64)
        kept = row >= descending[descending.cumsum() - descending < top_p * row.sum()][-1]
        cumulative = np.where(kept, row, 0).cumsum(dtype=np.float64)
        assert token == np.flatnonzero(cumulative > quantile * cumulative[-1])[0]
    in_place = draw_in_place(torch.from_numpy(probabilities), torch.from_numpy(quantiles), top_p)
    assert in_place[:, 0].tolist() == draw(probabilities, quantiles, top_p).tolist()


@pytest.mark.parametrize(("many", "count"), [(9, 4), (5000, 8), (122_088, 8), (4 * 8 * BLOCK, 8)])
def test_the_largest_are_found_by_blocks(many: int, count: int) -> None:
    scores = torch.randn(3, many, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # all different
    scores[0, -count:] += 10  # some beyond the last whole block
    scores[1, :count] += 10
    scores[2, : many // 2] = -torch.inf
    values, indices = _top(scores, count)
    assert torch.equal(values, scores.topk(count).values)
    assert torch.equal(indices, scores.topk(count).indices)


def test_equal_images_are_sampled_independently_by_their_seeds() -> None:
    memory = Rows(tables(1, 12).rows.repeat(2, 1, 1))
    decoding = Decoding(do_sample=True, max_new_tokens=9, seed=1)
    first, second = search(Markov(), memory, Letters(), decoding, [1, 2])
    assert first != second


def test_sampling_follows_the_probabilities() -> None:
    memory = tables(1, 6, seed=2)
    draws = 4000
    decoding = Decoding(do_sample=True, num_return_sequences=draws, max_new_tokens=1, temperature=0.7, top_k=4, seed=5)
    (found,) = search(Markov(), memory, Letters(), decoding)
    counts = torch.zeros(6)
    for text in found:
        counts[text.ids[0] if text.ids else END] += 1
    logits = memory.rows[0, 1]
    expected = (logits.masked_fill(logits < logits.topk(4).values[-1], -torch.inf) / 0.7).softmax(-1)
    assert (counts / draws - expected).abs().max() < 0.04
    assert (counts[expected == 0] == 0).all()
    assert [text.score for text in found] == sorted((text.score for text in found), reverse=True)


# --- forbidden words --------------------------------------------------------------------------------------------------

WAYS = [
    {"num_beams": 1},
    {"num_beams": 4, "num_return_sequences": 3},
    {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 2},
    {"do_sample": True, "num_return_sequences": 3, "seed": 4},
]


@pytest.mark.parametrize("way", WAYS)
def test_forbidden_words_are_never_written(way: dict) -> None:
    memory = tables(4, len(LETTERS), seed=10)
    free = search(Markov(), memory, Letters(), Decoding(max_new_tokens=12, **way))
    words = {Letters().decode(text.ids)[1:3].strip() for texts in free for text in texts} - {""}
    bound = search(Markov(), memory, Letters(), Decoding(max_new_tokens=12, forbid=tuple(words), **way))
    texts = [Letters().decode(text.ids) for texts in bound for text in texts]
    assert any(word in Letters().decode(text.ids) for word in words for texts in free for text in texts)
    assert not any(word in text for word in words for text in texts)


def test_a_word_that_the_vocabulary_has_not_forbids_nothing() -> None:
    """It would be the unknown token, or none at all."""

    class Words:
        known = ("[UNK]", "cat")

        def encode(self, text: str) -> list[int]:
            return [self.known.index(word) if word in self.known else 0 for word in text.split()]

        def decode(self, ids) -> str:
            return " ".join(self.known[token] for token in ids)

    assert forbidden_sequences(["zebra", "CAT"], Words()) == [[1]]


def test_an_empty_word_cannot_be_forbidden() -> None:
    with pytest.raises(BadInput, match=r"^forbid must be words, none of them empty"):
        Decoding(forbid=(" ",))
