"""Subject and modifiers: how a prompt is split, which terms count, what models miss and invent."""

from pathlib import Path

import numpy as np
import pytest

from captioner.errors import BadInput
from eval import metrics
from eval.anatomy import EVERY_TERM, Overlap, Tally, Vocabulary, from_corpus, from_file, split, tally

PROMPT = "A castle at night,  Oil  painting, by Greg Rutkowski, ((sharp focus:1.2)), oil painting, "


def test_a_prompt_is_split_at_its_commas() -> None:
    anatomy = split(PROMPT)
    assert anatomy.subject == "A castle at night"
    assert anatomy.terms == ("oil painting", "greg rutkowski", "sharp focus")
    assert split("a castle").terms == ()
    assert split(" , ").subject == ""
    assert split("a cat，水彩、4k").terms == ("水彩", "4k")


@pytest.mark.parametrize("text", ["a Red cat, by day, oil painting, by day, x-ray, l'art", "ﬁne Art, by BY, b"])
def test_a_text_with_nothing_to_clean_is_split_the_same(text: str) -> None:
    assert split(text) == split(f"{text}, ")
    assert split(text).terms == split(text.replace(", ", " ,")).terms


def test_modifiers_are_what_the_corpus_has_ten_times() -> None:
    corpus = [f"castle {n}, 4k, rare {n}" for n in range(10)] + ["a cat, nine"] * 9
    vocabulary = from_corpus(corpus)
    assert vocabulary.terms == {"4k"}
    assert vocabulary.modifiers("nine, 4K, rare 1, nine") == {"4k"}
    assert from_corpus(corpus, least=9).terms == {"4k", "nine"}
    assert "19 prompts" in vocabulary.rule


def test_a_corpus_too_small_counts_every_term() -> None:
    vocabulary = from_corpus(["a cat, 4k", "a dog, oil"])
    assert vocabulary.modifiers("x, 8k, 4k") == {"8k", "4k"}
    assert "none is in 10 of the 2 prompts" in vocabulary.rule


def test_lists_of_modifiers(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("Oil painting\t40\nby Greg Rutkowski\t3\n")
    (tmp_path / "list.csv").write_text("keyword,count\nartstation,46357\n8k,22987\n")
    assert from_file(tmp_path / "list.txt").terms == {"oil painting", "greg rutkowski"}
    assert from_file(tmp_path / "list.csv").terms == {"artstation", "8k"}
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name in ("other.csv", "none.csv", "none.txt"):
        with pytest.raises(BadInput, match=name):
            from_file(tmp_path / name)


def test_overlap_by_hand() -> None:
    overlap = Overlap(frozenset({"a", "b", "c"}), frozenset({"b", "c", "d", "e"}))
    assert overlap.jaccard == pytest.approx(2 / 5)
    assert overlap.precision == pytest.approx(2 / 3)
    assert overlap.recall == pytest.approx(2 / 4)
    assert overlap.f1 == pytest.approx(4 / 7)
    assert Overlap(frozenset(), frozenset("a")).jaccard == 0


def test_modifier_metrics() -> None:
    jaccard, precision, recall, f1 = metrics.modifier_metrics(Vocabulary(frozenset({"oil", "4k", "sharp"}), "three"))
    predictions = ["x, oil, unheard of, 4k", "oil", "x, oil", None, "x"]
    truths = ["y, 4K, sharp", "a fox", "a fox", "a fox, oil", "y, sharp"]
    np.testing.assert_allclose(jaccard(predictions, truths), [1 / 3, np.nan, 0, np.nan, 0])
    np.testing.assert_allclose(precision(predictions, truths), [1 / 2, np.nan, 0, np.nan, 0])
    np.testing.assert_allclose(recall(predictions, truths), [1 / 2, np.nan, 0, np.nan, 0])
    np.testing.assert_allclose(f1(predictions, truths), [1 / 2, np.nan, 0, np.nan, 0])
    # Of several true texts the one that fits best counts; one without modifiers is no match.
    assert jaccard(["x, oil"], [["a fox", "b, oil"]])[0] == 1


def test_the_subject_alone_is_compared() -> None:
    same, other = metrics.subject_cosine(["a red fox, oil painting", "an owl, 4k"], ["A red fox, 8k", "a car, 4k"])
    assert same == pytest.approx(1, abs=1e-5)
    assert other < 0.6


def test_what_a_model_misses_and_invents() -> None:
    predictions = ["x, oil, 4k", "x, 4k", None, "x, oil"]
    truths = [("y, oil, sharp",), ("y, sharp, 4k",), ("y, sharp",), ("no commas", "z, oil, sharp")]
    missed, invented = tally(predictions, truths, EVERY_TERM)
    assert missed == [Tally("sharp", 3, 3)]
    assert invented == [Tally("4k", 1, 2)]
