"""What report.json holds, typed. Whoever reads a report in Python may import these; nothing else is in the file."""

from __future__ import annotations

from typing import Any, TypedDict


class Figures(TypedDict):
    """One model in one metric. None: nothing could be measured, or nothing is known of how prompts differ."""

    mean: float | None
    low: float | None
    """Ends of the 95 % bootstrap interval of the mean."""
    high: float | None
    median: float | None
    variance: float | None
    max: float | None
    n: int
    """Pictures that have a value."""


class MetricRow(TypedDict):
    """A metric and its definition."""

    name: str
    label: str
    higher_is_better: bool | None
    """None: neither good nor bad."""
    meaning: str
    group: str
    """The heading under which it stands; "": none."""


class DifferenceRow(TypedDict):
    """Model b minus model a, picture by picture."""

    metric: str
    a: str
    b: str
    mean: float | None
    low: float | None
    high: float | None
    p: float
    p_holm: float
    """Corrected for all pairs of models in this metric."""
    n: int
    significant: bool
    detectable: float | None
    """The smallest true difference that this comparison would have found; see `Power`."""


class Power(TypedDict):
    """The smallest difference that so many prompts could show: the largest `detectable` of all pairs of models."""

    level: float
    """Two-sided, before Holm's correction for the number of pairs."""
    power: float
    """Share of repetitions in which a difference of that size would be found."""
    prompts: int
    smallest: dict[str, float]
    """By metric."""


class TallyRow(TypedDict):
    """A modifier that a model misses (or invents) on `count` of the `of` pictures that have it (or it was said of)."""

    modifier: str
    count: int
    of: int


class ModifierRows(TypedDict):
    """The most frequent ones first; empty in a report of figures only, and for a model without texts."""

    missed: list[TallyRow]
    invented: list[TallyRow]


class SpreadRow(TypedDict):
    """Means of the runs of one model in one metric."""

    low: float
    high: float
    deviation: float
    """Standard deviation over the runs."""


class Runs(TypedDict):
    """Several runs of one sampled model: its figures are means over them."""

    names: list[str]
    spread: dict[str, SpreadRow]
    """By metric."""


class NearDuplicates(TypedDict):
    """Pictures of the data with a prompt that is (nearly) among a model's training prompts."""

    near: int
    """Above the threshold, the exact ones with them."""
    exact: int
    pictures: int
    training_prompts: int
    threshold: float


class ModelRow(TypedDict):
    """A model, whether it could be measured or not."""

    label: str
    name: str
    failure: str | None
    traceback: str | None
    """Where it failed; left out of a report of figures only."""
    weights: str | None
    """sha256 of its files."""
    load_seconds: float | None
    images_per_second: float | None
    precision: str | None
    """In which it computed, where it tells."""
    distinct: float | None
    """The number of different texts over that of all texts."""
    trained_on: list[str]
    warning: str | None
    near_duplicates: NearDuplicates | None
    """None: its training prompts are not known."""
    modifiers: ModifierRows
    runs: Runs | None
    """None: it was asked once."""
    figures: dict[str, Figures]
    """By metric."""


class ProtocolColumn(TypedDict):
    """A column of a paper's table."""

    label: str
    metric: str
    meaning: str


class ProtocolRow(TypedDict):
    """A model of ours, or a published one (with `where`)."""

    label: str
    values: list[float | None]


class PublishedRow(ProtocolRow):
    where: str


class ProtocolTable(TypedDict):
    """A paper's table: our rows as measured, the others as published."""

    name: str
    title: str
    columns: list[ProtocolColumn]
    rows: list[ProtocolRow]
    published: list[PublishedRow]
    notes: list[str]


class Redrawn(TypedDict):
    """Pictures drawn from the models' texts."""

    folder: str
    settings: dict[str, Any]
    """How they were drawn; empty if nobody says."""
    pictures: dict[str, int]
    """How many, by model; "true prompt" are those of the true prompts."""
    true_prompts: dict[str, float]
    """By metric, what the true prompts come to when they are drawn again."""


class Vocabulary(TypedDict):
    """Which comma terms count as modifiers."""

    rule: str
    terms: int | None
    """How many; None: every term behind the subject."""


class DataRow(TypedDict):
    """What was measured on."""

    specs: list[str]
    names: list[str]
    noun: str
    pictures: int
    prompts: int
    fingerprint: str
    notes: list[str]


class Circumstances(TypedDict):
    """When, how and with what it was made."""

    command: str
    made: str
    seed: int
    resamples: int
    versions: dict[str, str]
    machine: str


class Begun(Circumstances):
    """A report before its figures."""

    title: str
    kind: str
    """report or score."""
    figures_only: bool
    settings: dict[str, Any]
    data: DataRow
    vocabulary: Vocabulary
    protocol: ProtocolTable | None
    redrawn: Redrawn | None
    """None: no picture was drawn again."""


class Report(Begun):
    """report.json."""

    metrics: list[MetricRow]
    differences: list[DifferenceRow]
    best: dict[str, str | None]
    power: Power | None
    """None: fewer than two models."""
    models: list[ModelRow]
