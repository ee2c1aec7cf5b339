"""Every metric: a small callable with a name and a direction, `metric(predictions, references) -> one value an item`.

A prediction or a reference that is missing (None, or no text in the reference) gives NaN, never 0: a model that says
nothing comparable has no score. An empty prediction is an answer, and a bad one. An item may have several references
(photographs with five captions); the pairwise metrics then count the one that fits best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cpdist

from captioner.errors import BadInput, counted
from captioner.text.embedding import TextEmbedder, text_embedder
from captioner.text.similarity import indel_ratio, quick_ratios
from eval import anatomy, ngrams
from eval.anatomy import EVERY_TERM, Overlap, Vocabulary

Text = str | None
References = str | Sequence[str] | None
CLIP_WEIGHT = 2.5
"""CLIPScore is so many times the cosine."""
ANATOMY, OF_CLIP, OF_COCO, OF_LANGUAGE, PROMPTSTEALER = (
    "Prompt anatomy",
    "CLIP",
    "COCO's own",
    "Language models",
    "PromptStealer's own",
)
"""Headings of reports: what is not of every prompt or not of every report."""

PairwiseScore = Callable[[list[str], list[str]], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """What a figure is called and what it means."""

    name: str
    label: str
    higher_is_better: bool | None
    """None: descriptive, neither good nor bad."""
    meaning: str
    group: str = field(default="", kw_only=True)
    """The heading under which a report shows it; none: with the others."""


@dataclass(frozen=True)
class TextMetric(Metric):
    """A figure that is told from texts alone."""

    score: Callable[[list[str], list[tuple[str, ...]]], np.ndarray]
    """Values of items that have both a prediction and at least one reference."""
    needs_reference: bool = True
    weighs_words: bool = field(default=False, kw_only=True)
    """By how rare they are among all references: those of items without a prediction count there, too."""

    def __call__(self, predictions: Sequence[Text], references: Sequence[References] | None = None) -> np.ndarray:
        """float64 `[items]`, NaN where the prediction or (if needed) the reference is missing."""
        if isinstance(predictions, str) or isinstance(references, str):  # each letter would be an item
            raise BadInput("Predictions and references are lists, even of one text.")
        references = [None] * len(predictions) if references is None else references
        if len(predictions) != len(references):
            raise BadInput(
                f"There are {counted(len(predictions), 'prediction')} and {counted(len(references), 'reference')}: "
                "give as many of one as of the other, with None for what is missing."
            )
        truths = [as_references(reference) for reference in references]
        present = [
            (row, text or "", of_item)
            for row, (text, of_item) in enumerate(zip(predictions, truths, strict=True))
            if (text is not None or self.weighs_words) and (of_item or not self.needs_reference)
        ]
        values = np.full(len(predictions), np.nan)
        if present:
            rows, texts, of_texts = (list(part) for part in zip(*present, strict=True))
            values[rows] = self.score(texts, of_texts)
        values[[text is None for text in predictions]] = np.nan
        return values


def as_references(given: References) -> tuple[str, ...]:
    """One text, several or none → those that say anything."""
    texts = (given,) if isinstance(given, str) else tuple(given or ())
    return tuple(text for text in texts if text.strip())


def best_reference(pairwise: PairwiseScore) -> Callable[[list[str], list[tuple[str, ...]]], np.ndarray]:
    """A score of pairs → a score of items: the reference that fits best counts."""

    def score(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
        counts = [len(truths) for truths in references]
        predicted = [text for text, count in zip(predictions, counts, strict=True) for _ in range(count)]
        return best_of(pairwise(predicted, [truth for truths in references for truth in truths]), counts)

    return score


def best_of(values: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The highest of each item's values, which come one after another, so many an item."""
    return np.fmax.reduceat(values, np.cumsum([0, *counts[:-1]]))  # NaN: nothing could be measured, is never the best


def levenshtein(a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """`1 - edits / length of the longer`, substitutions allowed."""
    return cpdist(a, b, scorer=Levenshtein.normalized_similarity, dtype=np.float64)


def cosines(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Row by row. Both `[n, d]`; rows need not be unit vectors."""
    lengths = np.linalg.norm(predicted, axis=1) * np.linalg.norm(truth, axis=1)
    return np.einsum("nd,nd->n", predicted, truth, dtype=np.float64) / np.where(lengths > 0, lengths, np.nan)


def text_cosines(a: Sequence[str], b: Sequence[str], embed: TextEmbedder | None = None) -> np.ndarray:
    """Cosine of the sentence embeddings; embed: None takes MiniLM-L6."""
    embed = text_embedder() if embed is None else embed
    return cosines(embed(a), embed(b))


def cosine_score(embed: TextEmbedder) -> Callable[[list[str], list[tuple[str, ...]]], np.ndarray]:
    """The cosine in the space of this embedder, of the reference that fits best."""
    return best_reference(partial(text_cosines, embed=embed))


def terms(text: str) -> frozenset[str]:
    """The comma terms of a prompt, without case and doubled spaces."""
    return frozenset(" ".join(term.split()).casefold() for term in anatomy.COMMA.split(text) if term.strip())


def _overlap_score(
    parts: Callable[[str], frozenset[str]], figure: str, nothing: float = 0.0
) -> Callable[[list[str], list[tuple[str, ...]]], np.ndarray]:
    """What the parts of both texts have in common. nothing: the value where neither text has any."""

    def pairwise(a: list[str], b: list[str]) -> np.ndarray:
        # One at a time: kept, they are memory that is taken anew, and walked through for garbage.
        overlaps = (Overlap(parts(predicted), parts(truth)) for predicted, truth in zip(a, b, strict=True))
        return np.array([nothing if overlap.empty else getattr(overlap, figure) for overlap in overlaps])

    return best_reference(pairwise)


def _words(predictions: list[str], references: list[tuple[str, ...]]) -> np.ndarray:
    return np.array([float(len(ngrams.words(text))) for text in predictions])


class Remembering:
    """A text embedder that embeds each text once: the true prompts come with every model."""

    def __init__(self, embed: TextEmbedder) -> None:
        self.embed = embed
        self.vectors: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in self.vectors]:
            self.vectors.update(zip(new, self.embed(new), strict=True))
        return np.stack([self.vectors[text] for text in texts])


def embedder_metrics(embed: TextEmbedder) -> tuple[TextMetric, TextMetric]:
    """`cosine` and `subject_cosine` in the space of this embedder."""
    return (
        replace(cosine, score=cosine_score(embed)),
        replace(subject_cosine, score=best_reference(partial(subject_cosines, embed=embed))),
    )


def subject_cosines(a: Sequence[str], b: Sequence[str], embed: TextEmbedder | None = None) -> np.ndarray:
    """Cosine of the subjects alone; embed: None takes MiniLM-L6."""
    embed = text_embedder() if embed is None else embed
    subjects = [[anatomy.split(text).subject for text in side] for side in (a, b)]
    distinct = list(dict.fromkeys([*subjects[0], *subjects[1]]))
    row = {subject: number for number, subject in enumerate(distinct)}
    vectors = embed(distinct)
    predicted, true = (vectors[[row[subject] for subject in side]] for side in subjects)
    return cosines(predicted, true)


def modifier_metrics(vocabulary: Vocabulary = EVERY_TERM) -> tuple[TextMetric, ...]:
    """How well modifiers are recovered; which terms are modifiers is told by the vocabulary."""
    return tuple(
        TextMetric(
            f"modifier_{figure}",
            f"modifier {label}",
            True,
            f"{meaning}; modifiers are {vocabulary.rule}. Pictures where neither text has one are not counted",
            _overlap_score(vocabulary.modifiers, figure, nothing=np.nan),
            group=ANATOMY,
        )
        for figure, label, meaning in (
            ("jaccard", "Jaccard", "modifiers of both texts over modifiers of either"),
            ("precision", "precision", "share of the predicted modifiers that the true prompt has"),
            ("recall", "recall", "share of the true prompt's modifiers that were predicted"),
            ("f1", "F1", "twice the modifiers of both texts over the modifiers of each"),
        )
    )


cosine = TextMetric(
    "cosine",
    "MiniLM cosine",
    True,
    "cosine of the all-MiniLM-L6-v2 sentence embeddings of both texts, or of the directly predicted embedding "
    "and the true text's: what the Kaggle competition scores",
    best_reference(text_cosines),
)
levenshtein_ratio = TextMetric(
    "levenshtein_ratio",
    "Levenshtein ratio",
    True,
    "(len a + len b − insertions and deletions) / (len a + len b), as python-Levenshtein's ratio",
    best_reference(indel_ratio),
)
levenshtein_similarity = TextMetric(
    "levenshtein_similarity",
    "Levenshtein similarity",
    True,
    "1 − edits / length of the longer text, substitutions allowed",
    best_reference(levenshtein),
)
quick_ratio = TextMetric(
    "quick_ratio",
    "quick ratio",
    True,
    "twice the common multiset of characters over both lengths: difflib's quick_ratio without its autojunk rule",
    best_reference(quick_ratios),
)
bleu4 = TextMetric(
    "bleu4",
    "BLEU-4 (smoothed)",
    True,
    "sentence BLEU of words, 1 to 4 in a row; counts of 2 and more smoothed by one (Lin and Och, 2004). Higher than "
    "COCO's, and not comparable with published figures on COCO",
    ngrams.bleu,
)
bleu4_coco = TextMetric(
    "bleu4_coco",
    "BLEU-4 (COCO)",
    True,
    "sentence BLEU of Penn Treebank tokens, not smoothed, as the COCO caption evaluation gives it for each picture; "
    "papers print it of all texts as one, see --protocol coco",
    ngrams.coco_bleu,
    group=OF_COCO,
)
rouge_l = TextMetric(
    "rouge_l", "ROUGE-L", True, "longest common subsequence of words, F with β = 1.2 as in COCO", ngrams.rouge_l
)
cider_d = TextMetric(
    "cider_d",
    "CIDEr-D",
    True,
    "tf-idf weighted word sequences, 0 to 10; the weights come from this data set's own references",
    ngrams.cider_d,
    weighs_words=True,
)
keyword_precision = TextMetric(
    "keyword_precision",
    "keyword precision",
    True,
    "share of the predicted comma terms that are in the true prompt",
    _overlap_score(terms, "precision"),
)
keyword_recall = TextMetric(
    "keyword_recall",
    "keyword recall",
    True,
    "share of the true prompt's comma terms that were predicted",
    _overlap_score(terms, "recall"),
)
keyword_f1 = TextMetric(
    "keyword_f1", "keyword F1", True, "harmonic mean of keyword precision and recall", _overlap_score(terms, "f1")
)
modifier_jaccard, modifier_precision, modifier_recall, modifier_f1 = modifier_metrics()
rouge_l_coco = TextMetric(
    "rouge_l_coco",
    "ROUGE-L (COCO)",
    True,
    "longest common subsequence of Penn Treebank tokens, F with β = 1.2",
    partial(ngrams.rouge_l, tokenise=ngrams.ptb_line),
    group=OF_COCO,
)
cider_d_coco = TextMetric(
    "cider_d_coco",
    "CIDEr-D (COCO)",
    True,
    "tf-idf weighted sequences of Penn Treebank tokens, 0 to 10; weights from this data set's own references",
    partial(ngrams.cider_d, tokenise=ngrams.ptb_line),
    weighs_words=True,
    group=OF_COCO,
)
subject_cosine = TextMetric(
    "subject_cosine",
    "subject cosine",
    True,
    "cosine of the sentence embeddings of the two subjects alone: the text before the first comma",
    best_reference(subject_cosines),
    group=ANATOMY,
)
length = TextMetric("length", "words", None, "words in the predicted text", _words, needs_reference=False)

NOT_RECOVERY = (
    "How well a text fits its picture in CLIP's space was shown not to predict how well the prompt was recovered "
    "(Williams et al., 2024)"
)
clip_text = Metric(
    "clip_text",
    "CLIP text–text",
    True,
    "cosine of predicted and true text in CLIP's space, both cut at its limit",
    group=OF_CLIP,
)
clip_picture = Metric(
    "clip_picture",
    "CLIP picture–text",
    True,
    f"cosine of picture and predicted text in CLIP's space. {NOT_RECOVERY}",
    group=OF_CLIP,
)
clip_score = Metric(
    "clip_score",
    "CLIPScore",
    True,
    f"2.5 × cosine of picture and predicted text in CLIP's space, negative ones as 0. {NOT_RECOVERY}",
    group=OF_CLIP,
)
promptstealer_semantic = Metric(
    "promptstealer_semantic",
    "semantic",
    True,
    "PromptStealer's: cosine of both texts in CLIP's space; a text above its limit is cut to 40, 30, 20 or 15 words",
    group=PROMPTSTEALER,
)
promptstealer_modifier = Metric(
    "promptstealer_modifier",
    "modifier",
    True,
    "PromptStealer's: Jaccard index of the modifiers of both texts; 0 where neither text has one",
    group=PROMPTSTEALER,
)
bert_score = Metric(
    "bert_score",
    "BERTScore F1",
    True,
    "every token is matched with the most alike one of the other text, by their contextual embeddings (Zhang et al., "
    "2020); neither weighted by rarity nor rescaled",
    group=OF_LANGUAGE,
)
perplexity = Metric(
    "perplexity",
    "perplexity",
    None,
    "of the predicted text under a language model: low is fluent, not right; prompts are lists of terms, not sentences",
    group=OF_LANGUAGE,
)

TEXT_METRICS: tuple[TextMetric, ...] = (
    levenshtein_ratio,
    levenshtein_similarity,
    quick_ratio,
    bleu4,
    bleu4_coco,
    rouge_l,
    cider_d,
    keyword_precision,
    keyword_recall,
    keyword_f1,
    length,
)
"""What needs no model and no vocabulary. `cosine` needs the embedder, `clip_*` a CLIP (`eval/clip.py`), `bert_score`
and `perplexity` language models (`eval/language.py`)."""

DRAWN_AGAIN = "Drawn again"
REDRAWN_METRICS: tuple[Metric, ...] = (
    Metric(
        "redrawn_efficientnet",
        "EfficientNet cosine",
        True,
        "cosine of what mini's EfficientNet-Lite2 (ImageNet weights) sees in the picture and in the one drawn from the "
        "model's text: are the same things there?",
        group=DRAWN_AGAIN,
    ),
    Metric(
        "redrawn_clip",
        "CLIP picture cosine",
        True,
        "cosine of the picture and of the one drawn from the model's text in CLIP's space",
        group=DRAWN_AGAIN,
    ),
    Metric(
        "redrawn_distance",
        "feature distance",
        False,
        "LPIPS-like: the squared distance of EfficientNet-Lite2's unit-length features, place by place, mean over its "
        "stages; 0 is the same picture. Not LPIPS itself: another network, and no weights learnt from people",
        group=DRAWN_AGAIN,
    ),
    Metric(
        "redrawn_colour",
        "colours in common",
        True,
        "overlap of the colour histograms (8 × 8 × 8 cells of RGB) of the picture and of the one drawn from the text",
        group=DRAWN_AGAIN,
    ),
)
"""Likeness of a picture and the one drawn from a model's text (`eval/likeness.py`)."""

EVERY_METRIC: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        cosine,
        subject_cosine,
        modifier_jaccard,
        modifier_precision,
        modifier_recall,
        modifier_f1,
        *TEXT_METRICS[:-1],
        rouge_l_coco,
        cider_d_coco,
        clip_text,
        clip_picture,
        clip_score,
        promptstealer_semantic,
        promptstealer_modifier,
        bert_score,
        perplexity,
        length,
        *REDRAWN_METRICS,
    )
}
"""In the order in which reports show them."""

BESIDE = "cosine:"
"""Begins the names of cosines in the space of another embedder: `cosine:all-MiniLM-L12-v2`."""


def metric_of(name: str) -> Metric:
    """The metric of this name."""
    if name in EVERY_METRIC:
        return EVERY_METRIC[name]
    embedder = name.removeprefix(BESIDE)
    label = PurePath(embedder).name.removeprefix("all-").removesuffix("-v2")
    return Metric(name, f"{label} cosine", True, f"cosine of the {embedder} sentence embeddings of both texts")


def in_order(names: Iterable[str]) -> list[Metric]:
    """The metrics of these names in the order in which reports show them: other embedders beside the first."""
    order = {name: number for number, name in enumerate(EVERY_METRIC)}
    known = [metric_of(name) for name in names if name in EVERY_METRIC or name.startswith(BESIDE)]
    return sorted(known, key=lambda metric: (order.get(metric.name, order["cosine"] + 0.5), metric.name))
