"""Metrics against difflib, rapidfuzz, golden values and values worked by hand."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from nltk.tokenize import TreebankWordTokenizer
from rapidfuzz.distance import Levenshtein
from rouge_score.rouge_scorer import RougeScorer

from captioner.errors import BadInput
from eval import metrics, ngrams
from tests.text.test_similarity import random_pairs

TRUTH = "ultrasaurus holding a black bean taco in the woods, near an identical cheneosaurus"
SAID = (
    "a cartoon dinosaur with a piece of cheese in its mouth, an illustration of, sumatraism, mmmmm, "
    "buttercup eating pizza, pastry lizard"
)

ROUGE = [0.8, 0.6224489795918368, 0.9070631970260222]
CIDER = [3.1272323765503973, 3.827504439938108, 4.258711128889248]
COCO_BLEU = [0.00012574334290280228, 6.865890478059747e-05, 0.999999999679167]
BLEU = [0.668740304976422, 0.42728700639623407, 1.0]


@pytest.mark.parametrize(
    ("metric", "golden"),
    [("levenshtein_ratio", 0.3551), ("levenshtein_similarity", 0.2197), ("quick_ratio", 0.7196), ("cosine", 0.3790)],
)
def test_golden_values(metric: str, golden: float) -> None:
    assert getattr(metrics, metric)([SAID], [TRUTH])[0] == pytest.approx(golden, abs=5e-5)


def test_levenshtein_similarity_is_rapidfuzzs() -> None:
    for a, b, plain in zip(*random_pairs(), metrics.levenshtein(*random_pairs()), strict=True):
        assert plain == Levenshtein.normalized_similarity(a, b)


def test_rows_that_cannot_be_compared_are_nan_never_zero() -> None:
    for metric in (*metrics.TEXT_METRICS, metrics.cosine):
        values = metric([None, "a cat", "a cat", "", "a dog"], ["a cat", None, " ", "a cat", ["", "a dog"]])
        missing = [True, metric.needs_reference, metric.needs_reference, False, False]
        assert np.isnan(values).tolist() == missing, metric.name
        assert np.isnan(metric([None], ["x"])).all()
        assert metric([], []).shape == (0,)


def test_lists_of_other_lengths_and_texts_alone_are_told() -> None:
    """Each letter of a text was measured."""
    for predictions, references in ((["a", "b"], ["a"]), (["a"], ["a", "b"]), (["a"], [])):
        with pytest.raises(BadInput, match=r"predictions? and . references?: give as many of one as of the other"):
            metrics.levenshtein_ratio(predictions, references)
    for predictions, references in (("a cat", ["a cat"]), (["a cat"], "a cat"), ("a cat", "a dog")):
        with pytest.raises(BadInput, match="are lists, even of one text"):
            metrics.levenshtein_ratio(predictions, references)


@pytest.mark.parametrize("metric", [*metrics.TEXT_METRICS, metrics.cider_d_coco], ids=lambda metric: metric.name)
def test_a_value_does_not_depend_on_which_other_pictures_were_answered(metric: metrics.TextMetric) -> None:
    truths = ["a cat on a mat", "a dog in fog", "a red car at night", "a cat in fog"]
    every = metric(["a cat on a mat today", "a dog in the fog", "a car at night", "a cat"], truths)
    half = metric(["a cat on a mat today", "a dog in the fog", None, None], truths)
    assert half[:2].tolist() == every[:2].tolist()
    assert np.isnan(half[2:]).all()


def test_an_empty_prediction_is_a_bad_answer() -> None:
    others = ["a cat on a mat", "two dogs"]
    for metric in metrics.TEXT_METRICS:
        assert metric(["", *others], ["a red house", *others])[0] == 0, metric.name


def test_the_reference_that_fits_best_counts() -> None:
    several = metrics.levenshtein_ratio(["a cat", "b"], [["a dog", "a cat", "mouse"], ["b"]])
    assert several.tolist() == [1, 1]
    assert metrics.rouge_l(["a cat"], [["a dog", "a cat"]])[0] == pytest.approx(1)


def test_bleu_by_hand() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, 0 of 3 fours; smoothed from the second order on; equal lengths.
    by_hand = (5 / 6 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25
    value = metrics.bleu4(["the cat sat on the mat"], ["the cat is on the mat"])[0]
    assert value == pytest.approx(by_hand)
    # A word said more often than in any reference counts only as often as there: 2 of 7.
    clipped = metrics.bleu4(["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]])[
        0
    ]
    assert clipped == pytest.approx((2 / 7 * 1 / 7 * 1 / 6 * 1 / 5) ** 0.25)
    # Half as long as the truth: exp(1 - 4/2).
    assert metrics.bleu4(["red fox"], ["red fox in snow"])[0] == pytest.approx(math.exp(-1))
    assert metrics.bleu4(["Red fox!"], ["red fox"])[0] == pytest.approx(1)


def test_coco_tokens_are_those_of_the_penn_treebank() -> None:
    """NLTK's Treebank tokens without the signs that COCO leaves out."""
    left_out = {"''", "'", "``", "`", "(", ")", "{", "}", "[", "]", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
    for text in (
        "A man can't surf; it's 1.5 m high!",
        "Black-and-white photo of the dog's bowl, 1,000 people",
        "a (very) big $5 pizza...",
        "I cannot go & the girls' hats: 5:30",
        "he'll see, we've seen, they're at 7 o'clock",
        'a sign that says "stop".',
    ):
        theirs = [word for word in TreebankWordTokenizer().tokenize(text.lower()) if word not in left_out]
        assert ngrams.ptb_words(text) == theirs


def test_words_of_plain_texts_are_those_of_all() -> None:
    """Most texts need no regular expression; a sign at the end makes the way through it."""
    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices(["cat", "Cannot", "8k", "1", "_", "-", ".", ",", " ", "\t", "\x1c", "é", "'"], k=9))
        assert ngrams.words(text) == ngrams.words(f"{text} ’")
        assert ngrams.ptb_words(text) == ngrams.ptb_words(f"{text} ’")


def test_coco_bleu_is_cocos() -> None:
    """Values of pycocoevalcap's own Bleu, of single texts and of all as one."""
    said = ["w1 w2 w3 w4 w5", "w9 w2 w9 w4 w1 w1", "w7 w8 w1 w2 w3"]
    refs = [("w1 w2 w3 w5 w4", "w2 w3 w4 w8"), ("w9 w4 w1 w2",), ("w7 w8 w1 w2 w9 w9", "w1", "w8 w1 w2 w3")]
    np.testing.assert_allclose(metrics.bleu4_coco(said, refs), COCO_BLEU, rtol=1e-6)
    assert ngrams.coco_corpus_bleu(said, refs) == pytest.approx(0.5676721705845282, rel=1e-9)
    # Words of the two smoothings apart: one four-word sequence is missing, and COCO's falls to 0.
    one = (["the cat sat on the mat"], ["the cat is on the mat"])
    assert metrics.bleu4_coco(*one)[0] < 0.001 < 0.4 < metrics.bleu4(*one)[0]


def test_cosines_beside_the_first_are_in_order() -> None:
    names = ["length", "cosine:org/all-MiniLM-L12-v2", "quick_ratio", "cosine", "unknown", "subject_cosine"]
    ordered = metrics.in_order(names)
    assert [metric.name for metric in ordered][:3] == ["cosine", "cosine:org/all-MiniLM-L12-v2", "subject_cosine"]
    assert ordered[1].label == "MiniLM-L12 cosine"
    assert len(ordered) == 5


WORDS = ["fox", "owl", "red", "blue", "in", "the", "snow", "at", "sea", "painting"]


def word_rows(seed: int, most: int) -> list[str]:
    """Texts of few words, so that sequences repeat; some are empty or shorter than four words."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(0, most))) for _ in range(400)]


def test_bleu_is_sacrebleus() -> None:
    predicted, near, far = word_rows(1, 12), word_rows(2, 12), word_rows(3, 20)
    references = [tuple(filter(None, pair)) or ("fox",) for pair in zip(near, far, strict=True)]
    theirs = [
        sacrebleu.sentence_bleu(
            text, list(of_item), smooth_method="add-k", smooth_value=1, use_effective_order=False, tokenize="none"
        ).score
        / 100
        for text, of_item in zip(predicted, references, strict=True)
    ]
    np.testing.assert_allclose(metrics.bleu4(predicted, references), theirs, rtol=1e-9, atol=1e-12)
    assert len(set(theirs)) > 100


def test_sequences_are_the_same_where_their_numbers_do_not_fit() -> None:
    """Of very many words the numbers of sequences are given out anew, and places are sorted apart from values."""
    words = np.random.default_rng(0).integers(0, 9, 3000).astype(np.int32)
    for joined, anew in zip(ngrams._sequences(words, 63), ngrams._sequences(words, 12), strict=True):
        np.testing.assert_array_equal(ngrams._ranks(joined, 40), ngrams._ranks(anew, 63))
        assert anew.max() < 1 << 12
    fours = {tuple(words[start : start + 4]) for start in range(len(words) - 3)}
    assert len(set(joined.tolist())) == len(fours)


def test_texts_without_words_and_with_signs_that_are_no_text() -> None:
    words, lengths = ngrams.numbered(["", "a \ud800 b", "…", "b \ud801"], ngrams.ptb_line)
    assert words.tolist() == [0, 1, 2, 2, 3]
    assert lengths.tolist() == [0, 3, 0, 2]
    assert metrics.bleu4(["", "…"], ["a", "?"]).tolist() == [0, 0]


def test_rouge_l_has_rouge_scores_precision_and_recall() -> None:
    predicted, truths = word_rows(4, 12), [text or "fox" for text in word_rows(5, 12)]
    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score(truth, text)["rougeL"] for text, truth in zip(predicted, truths, strict=True)]
    theirs = [2.44 * s.precision * s.recall / max(s.recall + 1.44 * s.precision, 1e-12) for s in scores]
    np.testing.assert_allclose(metrics.rouge_l(predicted, truths), theirs, rtol=1e-9)
    assert len(set(theirs)) > 100


def test_rouge_l_by_hand() -> None:
    # Common subsequence "police the gunman": 3 of 4 words either way.
    assert metrics.rouge_l(["police ended the gunman"], ["police kill the gunman"])[0] == pytest.approx(0.75)
    precision, recall = 1.0, 0.5
    by_hand = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert metrics.rouge_l(["a cat"], ["a cat in space"])[0] == pytest.approx(by_hand)


def test_cider_by_hand() -> None:
    """Three items of two words; idf of a word in one item is log 3, in two items log 1.5."""
    values = metrics.cider_d(["red fox", "red fox", "green"], ["red fox", "red hen", "blue owl"])
    assert values[0] == pytest.approx(10 * 2 / 4)  # one and two words in a row agree fully; longer ones do not exist
    common, rare = math.log(1.5), math.log(3)
    assert values[1] == pytest.approx(10 / 4 * common**2 / (common**2 + rare**2))
    assert values[2] == 0
    assert np.isnan(metrics.cider_d(["a cat"], ["a cat"])).all()


def test_cider_penalises_length_and_repetition() -> None:
    refs = ["one two three four", "five six seven eight", "nine ten red blue"]
    exact, longer, repeated = (
        metrics.cider_d([said, "x", "y"], refs)[0]
        for said in (refs[0], refs[0] + " nine ten red blue five six", "one two three four " * 3)
    )
    assert exact == pytest.approx(10)
    assert longer < exact * 0.6
    assert repeated < exact * 0.4


def test_several_references_agree_with_an_independent_implementation() -> None:
    """Values of the COCO caption evaluation's own ROUGE-L and CIDEr-D code, and of NLTK's smoothed BLEU."""
    said = ["w1 w2 w3 w4 w5", "w9 w2 w9 w4 w1 w1", "w7 w8 w1 w2 w3"]
    refs = [["w1 w2 w3 w5 w4", "w2 w3 w4 w8"], ["w9 w4 w1 w2"], ["w7 w8 w1 w2 w9 w9", "w1", "w8 w1 w2 w3"]]
    np.testing.assert_allclose(metrics.rouge_l(said, refs), ROUGE, rtol=1e-9)
    np.testing.assert_allclose(metrics.cider_d(said, refs), CIDER, rtol=1e-9)
    np.testing.assert_allclose(metrics.bleu4(said, refs), BLEU, rtol=1e-9)


def test_keywords() -> None:
    said, truth = "a fox,  Oil  painting, 4k, oil painting", "a Fox, oil painting, artstation, dramatic light"
    assert metrics.keyword_precision([said], [truth])[0] == pytest.approx(2 / 3)
    assert metrics.keyword_recall([said], [truth])[0] == pytest.approx(2 / 4)
    assert metrics.keyword_f1([said], [truth])[0] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert metrics.keyword_f1(["nothing"], [truth])[0] == 0


def test_cosine_of_a_zero_vector_is_missing() -> None:
    values = metrics.cosines(np.array([[0.0, 0], [3, 4]]), np.array([[1.0, 0], [6, 8]]))
    assert np.isnan(values[0])
    assert values[1] == pytest.approx(1)


def test_every_metric_is_in_the_docs() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    drawn = {metric.name for metric in metrics.REDRAWN_METRICS}
    assert [name for name in metrics.EVERY_METRIC if f"`{name}`" not in docs and name not in drawn] == []
