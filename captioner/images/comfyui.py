"""What a ComfyUI graph draws: its samplers' prompts, model and settings, in time that grows with its links alone.

A graph is `{id: {"class_type": …, "inputs": {name: value or [id, output]}}}`. Walked backwards from the samplers, it
gives the same prompts in the same order as sd-parsers, whose time grows with the cube of the nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLER_INPUTS = {"sampler_name", "steps", "cfg"}
SAMPLERS = ("WanVideoSampler",)
TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl")
MODELS = ("ckpt_name", "model", "unet_name")


@dataclass
class Drawing:
    """What was found; `settings` are the first sampler's, by ComfyUI's names."""

    prompts: list[str] = field(default_factory=list)
    negative_prompts: list[str] = field(default_factory=list)
    model: str | None = None
    loras: list[str] = field(default_factory=list)
    """Name:weight."""
    sampler: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def read(graph: Mapping[str, Any]) -> Drawing | None:
    """What the graph draws; None if nothing in it samples."""
    return _Graph(graph).drawing()


class _Graph:
    def __init__(self, graph: Mapping[str, Any]) -> None:
        nodes = {str(name): node for name, node in graph.items() if isinstance(node, dict)}
        self.inputs: dict[str, dict[str, Any]] = {
            name: node["inputs"] for name, node in nodes.items() if isinstance(node.get("inputs"), dict)
        }
        self.kinds = {name: node.get("class_type") for name, node in nodes.items()}

    def drawing(self) -> Drawing | None:
        samplers = [name for name in self.inputs if self._samples(name)]
        if not samplers:
            return None
        first = self.inputs[samplers[0]]
        name = next((first[key] for key in ("sampler_name", "scheduler") if isinstance(first.get(key), str)), None)
        drawing = Drawing(sampler=name, settings=self._settings(first))
        for side, texts in (("positive", drawing.prompts), ("negative", drawing.negative_prompts)):
            seen: set[str] = set()  # shared: whatever lies behind a node was found with it
            for sampler in samplers:
                texts += self._prompts(self._condition(sampler, side), side, seen)
            texts[:] = dict.fromkeys(texts)
        for inputs in self._behind(_link(first.get("model"))):
            if isinstance(inputs.get("lora_name"), str):
                drawing.loras.append(f"{inputs['lora_name']}:{inputs.get('strength_model', 1)}")
            drawing.model = drawing.model or next((inputs[k] for k in MODELS if isinstance(inputs.get(k), str)), None)
        return drawing

    def _samples(self, name: str) -> bool:
        return self.kinds[name] in SAMPLERS or self.inputs[name].keys() >= SAMPLER_INPUTS

    def _condition(self, sampler: str, side: str) -> str | None:
        inputs = self.inputs[sampler]
        embeds = _link(inputs.get("text_embeds"))  # a video sampler has both sides behind one input
        if embeds is not None:
            inputs = self.inputs.get(embeds, inputs)
        return _link(inputs.get(side))

    def _prompts(self, start: str | None, side: str, seen: set[str]) -> Iterator[str]:
        """The texts behind a node, each branch up to its first."""
        waiting: list[str | None] = [start]
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.inputs:
                continue
            seen.add(name)
            inputs = self.inputs[name]
            texts = [inputs[key].strip() for key in (*TEXTS, side) if isinstance(inputs.get(key), str)]
            yield from texts
            if not texts:
                waiting += reversed([_link(value) for key, value in inputs.items() if key.lower() != "clip"])

    def _behind(self, start: str | None) -> Iterator[dict[str, Any]]:
        """The inputs of a node and of all behind it, depth first."""
        waiting: list[str | None] = [start]
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.inputs:
                continue
            seen.add(name)
            yield self.inputs[name]
            waiting += reversed([_link(value) for value in self.inputs[name].values()])

    def _settings(self, sampler: dict[str, Any]) -> dict[str, Any]:
        """A sampler's own settings; seed and size often stand in a node of their own."""
        settings = _plain(sampler)
        for name in ("seed", "noise_seed"):
            if (link := _link(sampler.get(name))) in self.inputs:
                settings |= {k: v for k, v in _plain(self.inputs[link]).items() if k in ("seed", "noise_seed")}
        sized = [inputs for inputs in self._behind(_link(sampler.get("latent_image"))) if _is_sized(inputs)]
        sized = sized[:1] or [inputs for inputs in self.inputs.values() if _is_sized(inputs)][-1:]
        for inputs in sized:
            settings |= {"width": inputs["width"], "height": inputs["height"]}
        return settings


def _link(value: Any) -> str | None:
    """The node that an input comes from."""
    return str(value[0]) if isinstance(value, list) and len(value) == 2 else None


def _plain(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if not isinstance(value, list | dict)}


def _is_sized(inputs: dict[str, Any]) -> bool:
    return all(isinstance(inputs.get(side), int | float) for side in ("width", "height"))
