"""Names → how to load: the only list of models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    name: str
    kind: str
    """captioner (speaks) or embedder (unit vectors only)."""
    module: str
    """The file under captioner/models/ whose `load(folder, options)` makes it."""
    weights: str | None
    """Hub id, or `bundled/<name>` for what ships with the package, or None: the user names a folder."""
    purpose: str


ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("mini", "captioner", "clip_prefix", "bundled/mini", "small, offline, instant: the default"),
        Entry("blip", "captioner", "blip", "Salesforce/blip-image-captioning-base", "general captions, best tuned"),
        Entry("blip-large", "captioner", "blip", "Salesforce/blip-image-captioning-large", "finer captions, slower"),
        Entry("clip-prefix", "captioner", "clip_prefix", None, "CLIP prefix + GPT-2, trained here or ClipCap"),
        Entry("resnet-lstm", "captioner", "resnet_lstm", None, "ResNet-50 + attention LSTM: the classic baseline"),
        Entry("resnet-lstm-gpt2", "captioner", "resnet_lstm_gpt2", None, "ResNet-50 → LSTM → GPT-2"),
        Entry("ofa", "captioner", "ofa", "OFA-Sys/ofa-base", "answers 'What does the image describe?'"),
        Entry("interrogator", "captioner", "interrogator", None, "caption + terms ranked by CLIP"),
        Entry("hub", "captioner", "hub", None, "any captioner of transformers: hub:ORG/NAME"),
        Entry("vit", "embedder", "direct", None, "ViT-B/16 straight to the embedding"),
        Entry("knn", "embedder", "knn", None, "mean of the nearest pictures' prompt embeddings"),
        Entry("ensemble", "embedder", "ensemble", None, "weighted mean of any embedders"),
    )
}
