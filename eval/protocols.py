"""Papers' own tables: `python -m eval report --protocol promptstealer | kaggle | coco`.

A protocol names the columns of a table as its paper measures them, and what others have published in these columns.
Published figures are printed as published; ours are measured by the definitions in the docstrings here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captioner.errors import BadInput
from captioner.pairs import sources
from eval import anatomy, ngrams, submission
from eval.anatomy import Overlap, Vocabulary
from eval.answers import Answer
from eval.entries import safe_name
from eval.metrics import metric_of
from eval.results import Results
from eval.schema import ProtocolColumn, ProtocolRow, ProtocolTable, PublishedRow
from eval.store import SUBMISSIONS

CORPUS_BLEU = "bleu4_corpus"
"""No mean of pictures: BLEU of all texts as one; of several runs the mean of theirs, as in the other columns."""
Texts = Sequence[str | None]
"""What a model said in one run."""


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    label: str
    metric: str
    scale: float = 1.0
    """Papers on COCO print hundredths."""


@dataclass(frozen=True)
class Published:
    """A row of the paper's table."""

    system: str
    values: tuple[float | None, ...]
    where: str


@dataclass(frozen=True)
class Protocol:
    """A paper's table."""

    name: str
    title: str
    columns: tuple[Column, ...]
    published: tuple[Published, ...] = ()
    notes: tuple[str, ...] = ()
    clip: str | None = None
    """The CLIP that it is defined with."""
    needs_minilm: bool = False
    """Its cosine is that of MiniLM-L6 and no other."""


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "promptstealer",
            "PromptStealer (Shen et al., USENIX Security 2024)",
            (Column("semantic", "promptstealer_semantic"), Column("modifier", "promptstealer_modifier")),
            (Published("PromptStealer", (0.6999, 0.4477), "its authors' repository; LexicaDataset, test split"),),
            ("Comparable only on the test split of LexicaDataset (hub:vera365/lexica_dataset) with CLIP ViT-L/14.",),
            clip="openai/clip-vit-large-patch14",
        ),
        Protocol(
            "kaggle",
            "Stable Diffusion – Image to Prompts (Kaggle, 2023)",
            (Column("mean cosine", "cosine"),),
            (
                Published("OFA, not tuned", (0.4264,), "a public notebook; hidden test set"),
                Published("CLIP Interrogator", (0.45836,), "a public notebook; hidden test set"),
                Published("nearest neighbours, CLIP features", (0.553,), "a public note of the 111th place"),
            ),
            ("The hidden test set of the competition is not public: our rows are on the data above.",),
            needs_minilm=True,
        ),
        Protocol(
            "coco",
            "COCO captions",
            (
                Column("CIDEr-D", "cider_d_coco", 100),
                Column("BLEU-4", CORPUS_BLEU, 100),
                Column("ROUGE-L", "rouge_l_coco", 100),
            ),
            (Published("ClipCap, transformer", (113.08, 33.53, None), "Mokady et al., 2021; Karpathy's test split"),),
            (
                "In hundredths, as papers print them. BLEU-4 is of all texts as one and not smoothed; the metric "
                '"BLEU-4 (COCO)" above is the mean of the same for single pictures, "BLEU-4 (smoothed)" is another.',
            ),
        ),
    )
}


def protocol_of(name: str | None) -> Protocol | None:
    """The protocol of this name; None for None."""
    if name is None:
        return None
    if name not in PROTOCOLS:
        raise BadInput(f"There is no protocol {name!r}: use one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def table(protocol: Protocol, measured: Results, runs: Mapping[str, Sequence[Texts]]) -> ProtocolTable:
    """The protocol's table of what was measured, and of what others have published. runs: of every model."""
    columns = [_column(column) for column in protocol.columns]
    rows: list[ProtocolRow] = [
        {"label": model, "values": [_value(column, measured, model, runs[model]) for column in protocol.columns]}
        for model in measured.models
    ]
    published: list[PublishedRow] = [
        {"label": row.system, "values": list(row.values), "where": row.where} for row in protocol.published
    ]
    return {
        "name": protocol.name,
        "title": protocol.title,
        "columns": columns,
        "rows": rows,
        "published": published,
        "notes": list(protocol.notes),
    }


def _column(column: Column) -> ProtocolColumn:
    meaning = (
        "BLEU of 1 to 4 Penn Treebank tokens in a row, of all texts as one, not smoothed"
        if column.metric == CORPUS_BLEU
        else metric_of(column.metric).meaning
    )
    return {"label": column.label, "metric": column.metric, "meaning": meaning}


def _value(column: Column, measured: Results, model: str, runs: Sequence[Texts]) -> float | None:
    if column.metric == CORPUS_BLEU:
        values = np.array([_corpus_bleu(texts, measured.truths) for texts in runs])
    else:
        values = measured.values[column.metric][:, measured.models.index(model)]
    return None if np.isnan(values).all() else column.scale * float(np.nanmean(values))


def _corpus_bleu(texts: Texts, truths: Sequence[tuple[str, ...]]) -> float:
    """NaN where nothing was said."""
    answered = [(text, of_item) for text, of_item in zip(texts, truths, strict=True) if text is not None]
    if not answered:
        return math.nan
    return ngrams.coco_corpus_bleu([text for text, _ in answered], [of_item for _, of_item in answered])


# --- PromptStealer ---------------------------------------------------------------------------------------------------

ITS_LEAST = 11
"""The data set's own list holds what appears "more than 10 times"."""
CUTS = (None, 40, 30, 20, 15)
"""Words that PromptStealer cuts a text to, until CLIP can read it whole."""


@dataclass(frozen=True)
class Targets:
    """The modifiers of each picture's true prompt, by the picture's id, and all that count."""

    by_id: dict[str, frozenset[str]]
    vocabulary: Vocabulary

    def overlap(self, identifier: str, truths: Sequence[str], prediction: str) -> Overlap:
        """The data set's own modifiers count where it names them, else those of the true prompt."""
        if identifier in self.by_id:
            return Overlap(self.vocabulary.modifiers(prediction), self.by_id[identifier])
        return self.vocabulary.overlap(prediction, truths)


def targets(specs: Sequence[str], split: str, prompts: Sequence[str], listed: Path | None) -> Targets:
    """What PromptStealer compares with: the column modifier10 of the data set where there is one.

    listed: a file of all modifiers that count, e.g. the authors' list of 7,672; without one, those that the column
    names, or, where there is no column, the terms that the prompts have more than ten times.
    """
    by_id: dict[str, frozenset[str]] = {}
    for spec in specs:
        for identifier, modifiers in _modifier10(spec, split):
            by_id[identifier] = frozenset(filter(None, map(anatomy.normalise, modifiers)))
    if listed is not None:
        return Targets(by_id, anatomy.from_file(listed))
    if not by_id:
        return Targets({}, anatomy.from_corpus(prompts, ITS_LEAST))
    every = frozenset().union(*by_id.values())
    return Targets(by_id, Vocabulary(every, f"the {len(every):,} terms in the data set's column modifier10"))


def cut(text: str, fits: Callable[[str], bool]) -> str:
    """PromptStealer's way with long texts: so few words, or at last comma terms, that CLIP reads all of them."""
    for words in CUTS:
        shorter = text if words is None else " ".join(text.split()[:words])
        if fits(shorter):
            return shorter
    return ",".join(text.split(",")[:20])


def _modifier10(spec: str, split: str) -> list[tuple[str, list[str]]]:
    """(id, modifiers) of each row of a table that has both columns; of any other source nothing."""
    from pyarrow import parquet

    wanted = ["id", "modifier10"]
    source = sources.parse(spec)
    rows: list[tuple[str, list[str]]] = []
    if source.kind == "hub":
        loaded = sources.load_hub(source, split)
        if set(wanted) <= set(loaded.column_names):
            columns = loaded.select_columns(wanted)
            rows = list(zip(map(str, columns["id"]), columns["modifier10"], strict=True))
    elif source.kind == "parquet":
        for file in sources.parquet_files(source.location, split):
            if set(wanted) <= set(parquet.read_schema(file).names):
                read = parquet.read_table(file, columns=wanted)
                rows += zip(map(str, read["id"].to_pylist()), read["modifier10"].to_pylist(), strict=True)
    return [(identifier, modifiers or []) for identifier, modifiers in rows]


# --- Kaggle ----------------------------------------------------------------------------------------------------------


def write_submissions(out: Path, answers: Mapping[str, Sequence[Answer]]) -> None:
    """A file in the competition's format for each model: its embeddings of the pictures, by their ids."""
    folder = out / SUBMISSIONS
    folder.mkdir(exist_ok=True)
    for label, of_model in answers.items():
        whole = [(answer.id, answer.vector) for answer in of_model if np.isfinite(answer.vector).all()]
        submission.write_vectors(folder / f"{safe_name(label)}.csv", whole)
