"""The values of a report: every metric that was asked for, of every picture, model and run.

What a metric needs beside the texts (a CLIP, other embedders, a vocabulary of modifiers, language models) is opened
once and before the models are asked, so that whatever is wrong with it is said at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from captioner.contracts import LoadOptions
from captioner.errors import BadInput
from captioner.text.embedding import MINILM, text_embedder
from eval import anatomy, metrics, protocols, results
from eval.anatomy import EVERY_TERM
from eval.answers import Answer, Track, answer_all
from eval.asking import Answered, Settings
from eval.data import Pairs
from eval.entries import Entry
from eval.metrics import Remembering, best_of, best_reference, cosine_score, cosines, embedder_metrics
from eval.protocols import Protocol
from eval.provenance import hash_of
from eval.results import Results
from eval.schema import Runs, SpreadRow

if TYPE_CHECKING:
    from captioner.contracts import Model
    from captioner.text.embedding import TextEmbedder
    from eval.clip import Clip
    from eval.language import BertScore, Perplexity


@dataclass(frozen=True)
class Measures:
    """What is measured beside the texts."""

    clip: str | None = None
    """A CLIP or SigLIP: folder or Hub id."""
    embedders: tuple[str, ...] = ()
    """Sentence embedders whose cosines stand beside the first one's."""
    modifiers: Path | None = None
    """A list of the terms that count as modifiers, instead of the frequent ones of the data."""
    bert_score: str | None = None
    """An encoder: folder or Hub id."""
    perplexity: str | None = None
    """A language model: folder or Hub id."""
    protocol: str | None = None
    seeds: int = 1
    """How often a model that samples is asked."""


@dataclass
class Instruments:
    """Everything that is needed to measure, opened."""

    wanted: Measures
    protocol: Protocol | None
    vocabulary: anatomy.Vocabulary
    embedder: str | None
    embed_texts: Remembering
    """Of the embedder: None is MiniLM-L6."""
    beside: dict[str, TextEmbedder]
    """By name, the embedders beside the first."""
    clip_name: str | None
    clip: Clip | None
    bert_score: BertScore | None
    perplexity: Perplexity | None
    targets: protocols.Targets | None = None
    """Of the protocol `promptstealer`."""

    def learn(self, corpus: Sequence[str], data: Sequence[str], split: str) -> None:
        """The prompts of the data tell which terms are modifiers, unless a list does."""
        if self.wanted.modifiers is None:
            self.vocabulary = anatomy.from_corpus(corpus)
        if self.protocol is not None and self.protocol.name == "promptstealer":
            self.targets = protocols.targets(data, split, corpus, self.wanted.modifiers)


def prepare(wanted: Measures, settings: Settings) -> Protocol | None:
    """The protocol that was asked for, if it can be measured with these settings: said before any data is read."""
    protocol = protocols.protocol_of(wanted.protocol)
    if protocol is not None and protocol.needs_minilm and settings.embedder not in MINILM:
        raise BadInput(f"The protocol {protocol.name} is of MiniLM-L6's cosine: leave out --embedder.")
    names = [Path(name).name for name in wanted.embedders]
    if doubles := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(f"Two embedders are called {doubles[0]!r}: name each once.")
    return protocol


def open_instruments(wanted: Measures, protocol: Protocol | None, settings: Settings) -> Instruments:
    """Load all that `wanted` names; done before the data is read, which may take long."""
    options = LoadOptions(device=settings.device, precision=settings.precision)
    clip_name = wanted.clip or (protocol.clip if protocol is not None else None)
    clip = bert_score = perplexity = None
    if clip_name is not None:
        from eval.clip import Clip

        clip = Clip(clip_name, options)
    if wanted.bert_score:
        from eval.language import BertScore

        bert_score = BertScore(wanted.bert_score, options)
    if wanted.perplexity:
        from eval.language import Perplexity

        perplexity = Perplexity(wanted.perplexity, options)
    return Instruments(
        wanted,
        protocol,
        vocabulary=EVERY_TERM if wanted.modifiers is None else anatomy.from_file(wanted.modifiers),
        embedder=settings.embedder,
        embed_texts=Remembering(text_embedder(settings.embedder)),
        beside={name: text_embedder(name) for name in wanted.embedders},
        clip_name=clip_name,
        clip=clip,
        bert_score=bert_score,
        perplexity=perplexity,
    )


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The answers of one model, once."""

    label: str
    answers: Sequence[Answer]

    @property
    def texts(self) -> list[str | None]:
        return [answer.text for answer in self.answers]


def measure(
    pairs: Pairs, answered: Sequence[Answered], instruments: Instruments, pictures: np.ndarray | None
) -> tuple[Results, dict[str, Runs]]:
    """All values, and of models that were asked several times the spread of their runs.

    A model's values are means over its runs, picture by picture; its texts are those of the first.
    pictures: CLIP's vectors of the pictures `[n, d]`; None without a CLIP.
    """
    answering = [one for one in answered if one.failure is None]
    runs = [Run(one.entry.label, answers) for one in answering for answers in one.runs]
    truths = [item.truths for item in pairs.items]
    of_runs = _values(pairs, runs, truths, instruments, pictures) if runs else {}
    rows = {one.entry.label: [n for n, run in enumerate(runs) if run.label == one.entry.label] for one in answering}
    measured = Results(
        ids=[item.id for item in pairs.items],
        truths=truths,
        image_hashes=[item.image_hash for item in pairs.items],
        models=list(rows),
        texts={label: runs[columns[0]].texts for label, columns in rows.items()},
        values={
            name: np.stack([results.row_means(values[:, columns]) for columns in rows.values()], axis=1)
            for name, values in of_runs.items()
        },
        sources=[item.source for item in pairs.items],
    )
    spread = {
        one.entry.label: _spread(one.run_names, {name: v[:, rows[one.entry.label]] for name, v in of_runs.items()})
        for one in answering
        if len(one.runs) > 1
    }
    return measured, spread


def _values(
    pairs: Pairs,
    runs: Sequence[Run],
    truths: list[tuple[str, ...]],
    instruments: Instruments,
    pictures: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """`[items, runs]` of every metric."""
    embed = instruments.embed_texts
    values = {"cosine": _stacked(_vector_cosines(run.answers, truths, embed) for run in runs)}
    texts = {str(number): run.texts for number, run in enumerate(runs)}
    _, subject = embedder_metrics(embed)
    extra = [subject, *(_beside(name, embedder) for name, embedder in instruments.beside.items())]
    if instruments.protocol is not None and instruments.protocol.name == "coco":
        extra += [metrics.rouge_l_coco, metrics.cider_d_coco]
    values |= results.text_values(texts, truths, instruments.vocabulary, extra)
    if instruments.clip is not None and pictures is not None:
        embed_by_clip = Remembering(instruments.clip.embed_texts)
        values |= _clip_values(runs, truths, embed_by_clip, pictures)
        if instruments.targets is not None:
            values |= _promptstealer(pairs, runs, embed_by_clip, instruments.clip.fits, instruments.targets)
    if (bert_score := instruments.bert_score) is not None:
        score = _measured_by(metrics.bert_score, best_reference(bert_score.f1))
        values[metrics.bert_score.name] = _stacked(score(run.texts, truths) for run in runs)
    if (perplexity := instruments.perplexity) is not None:
        of_texts = _measured_by(metrics.perplexity, lambda texts, _: perplexity.of(texts), needs_reference=False)
        values[metrics.perplexity.name] = _stacked(of_texts(run.texts) for run in runs)
    return values


def _stacked(columns: Iterable[np.ndarray]) -> np.ndarray:
    return np.stack(list(columns), axis=1)


def _spread(names: list[str], values: dict[str, np.ndarray]) -> Runs:
    spread: dict[str, SpreadRow] = {}
    for name, of_metric in values.items():
        if np.isnan(of_metric).all(axis=0).any():
            continue
        means = np.nanmean(of_metric, axis=0)
        spread[name] = {
            "low": float(means.min()),
            "high": float(means.max()),
            "deviation": float(means.std(ddof=1)),
        }
    return {"names": names, "spread": spread}


def _vector_cosines(answers: Sequence[Answer], truths: list[tuple[str, ...]], embed_texts: TextEmbedder) -> np.ndarray:
    """Of several true texts the nearest counts."""
    counts = [len(of_item) for of_item in truths]
    predicted = np.repeat(np.stack([answer.vector for answer in answers]), counts, axis=0)  # [truths, d]
    values = cosines(predicted, embed_texts([truth for of_item in truths for truth in of_item]))
    return best_of(values, counts)


def _measured_by(
    metric: metrics.Metric,
    score: Callable[[list[str], list[tuple[str, ...]]], np.ndarray],
    needs_reference: bool = True,
) -> metrics.TextMetric:
    return metrics.TextMetric(
        metric.name, metric.label, metric.higher_is_better, metric.meaning, score, needs_reference, group=metric.group
    )


def _beside(name: str, embedder: TextEmbedder) -> metrics.TextMetric:
    """Cosines of texts in another embedder's space."""
    metric = metrics.metric_of(metrics.BESIDE + Path(name).name)
    return _measured_by(metric, cosine_score(Remembering(embedder)))


def _clip_values(
    runs: Sequence[Run], truths: list[tuple[str, ...]], embed: TextEmbedder, pictures: np.ndarray
) -> dict[str, np.ndarray]:
    text_text = _measured_by(metrics.clip_text, cosine_score(embed))
    of_pictures = []
    for run in runs:
        column = np.full(len(pictures), np.nan)
        if answered := [(row, text) for row, text in enumerate(run.texts) if text is not None]:
            rows = [row for row, _ in answered]
            column[rows] = cosines(pictures[rows], embed([text for _, text in answered]))
        of_pictures.append(column)
    picture_text = _stacked(of_pictures)
    return {
        metrics.clip_text.name: _stacked(text_text(run.texts, truths) for run in runs),
        metrics.clip_picture.name: picture_text,
        metrics.clip_score.name: metrics.CLIP_WEIGHT * np.maximum(picture_text, 0),
    }


def _promptstealer(
    pairs: Pairs, runs: Sequence[Run], embed: TextEmbedder, fits: Callable[[str], bool], targets: protocols.Targets
) -> dict[str, np.ndarray]:
    truths = [item.truths for item in pairs.items]
    embed_cut = Remembering(lambda texts: embed([protocols.cut(text, fits) for text in texts]))
    semantic = _measured_by(metrics.promptstealer_semantic, cosine_score(embed_cut))
    modifier = [
        np.array(
            [
                np.nan if text is None else targets.overlap(item.id, item.truths, text).jaccard
                for item, text in zip(pairs.items, run.texts, strict=True)
            ]
        )
        for run in runs
    ]
    return {
        metrics.promptstealer_semantic.name: _stacked(semantic(run.texts, truths) for run in runs),
        metrics.promptstealer_modifier.name: _stacked(modifier),
    }


def picture_vectors(
    clip_name: str, clip: Clip, pairs: Pairs, folder: Path, batch_size: int, track: Track, notes: list[str]
) -> np.ndarray:
    """CLIP's vector of every picture, kept like a model's answers."""
    from captioner.pipeline import DirectEmbedder

    entry = Entry(f"clip {clip_name}", clip_name)
    header = {"clip": clip_name, "weights": hash_of([clip.folder]), "data": pairs.fingerprint}
    file = folder / entry.file_name
    embedder: Model = DirectEmbedder(clip_name, clip)
    answers = answer_all(file, header, lambda: embedder, pairs, batch_size, clip.embed_texts, track, entry.label, notes)
    return np.stack([answer.vector for answer in answers])
