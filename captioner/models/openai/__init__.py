"""A model behind an address that speaks OpenAI's chat completions: LM Studio, Ollama, vLLM, llama.cpp, OpenAI itself.

`openai:http://localhost:1234/v1#qwen3-vl` names the server and the model on it. Nothing is loaded here: pictures go out
as JPEG, as many requests at once as a batch has pictures.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Iterator
from dataclasses import fields

from captioner.contracts import LoadOptions
from captioner.models.openai.connection import KEYS, TIMEOUT, Connection, Limits
from captioner.models.openai.server import Server, Usage, data_url

__all__ = [
    "DEFAULT_DECODING",
    "KEYS",
    "TIMEOUT",
    "Connection",
    "Limits",
    "Server",
    "Usage",
    "data_url",
    "load",
    "spent",
]

DEFAULT_DECODING = {"num_beams": 1, "do_sample": True, "temperature": 0.6, "max_new_tokens": 300, "consensus": True}
"""Servers draw at random; `consensus` because they do not tell which of several texts is the likeliest."""


def load(name: str, options: LoadOptions) -> Server:
    """name: "ADDRESS#MODEL"; the model may be left out where the server has one alone."""
    address, _, model = name.partition("#")
    connection = Connection.to(address or os.environ.get("OPENAI_BASE_URL", ""))
    return Server(connection, urllib.parse.unquote(model) or None)


def spent(model: object) -> str | None:
    """What the servers have counted that a model has asked: its own, or those of an ensemble's members."""
    usages = list({id(server): server.usage for server in _servers(model)}.values())
    if not usages:
        return None
    return str(Usage(*(sum(getattr(usage, field.name) for usage in usages) for field in fields(Usage))))


def _servers(model: object) -> Iterator[Server]:
    from captioner.pipeline import Captioner, DirectEmbedder

    if isinstance(model, Captioner) and isinstance(model.speaker, Server):
        yield model.speaker
    elif isinstance(model, DirectEmbedder):
        from captioner.models.ensemble.ensemble import Ensemble

        if isinstance(model.embedder, Ensemble):
            for member in model.embedder.models:
                yield from _servers(member)
