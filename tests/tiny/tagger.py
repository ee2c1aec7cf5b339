"""A booru tagger of one linear layer over the pixels, in the files of the real ones, and timm's config."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 16
RATINGS = ("general", "sensitive", "questionable", "explicit")
GENERAL = (
    *("1girl", "solo", "long_hair", "hair_between_eyes", "looking_at_viewer", "smile", "6+girls", "red_eyes"),
    *(">_<", "0_0", "^_^", "(o)_(o)", ";)", ":d", "d:", "...", "?", "!!", "fate/stay_night_(style)", "sky"),
)
CHARACTERS = ("hatsune_miku", "artoria_pendragon_(fate)", "cirno", "kaname_madoka")
TAGS = (*RATINGS, *GENERAL, *CHARACTERS)
CATEGORIES = (9,) * len(RATINGS) + (0,) * len(GENERAL) + (4,) * len(CHARACTERS)


def layer(seed: int = 0) -> np.ndarray:
    """`[pixels, tags]`, spread so that a picture has some likely tags, and some unlikely ones."""
    return np.random.default_rng(seed).normal(0, 0.12, (SIDE * SIDE * 3, len(TAGS))).astype(np.float32)


def graph(batch: int | str = "batch_size", shape: tuple[int | str, ...] = (SIDE, SIDE, 3)) -> onnx.ModelProto:
    """sigmoid((pixels / 127.5 - 1) · layer), as the real ones scale inside."""
    constants = {
        "half": np.float32(127.5),
        "one": np.float32(1),
        "flat": np.array([-1, SIDE * SIDE * 3]),
        "layer": layer(),
    }
    nodes = [
        helper.make_node("Div", ["input", "half"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["moved"]),
        helper.make_node("Reshape", ["moved", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "layer"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    pixels = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *shape])
    probabilities = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, len(TAGS)])
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "tagger", [pixels], [probabilities], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(graph().SerializeToString())
    rows = [f"{n},{name},{kind},{1000 - n}" for n, (name, kind) in enumerate(zip(TAGS, CATEGORIES, strict=True))]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]) + "\n", encoding="utf-8")
    timm = {"architecture": "swinv2_base_window8_256", "num_classes": len(TAGS), "pretrained_cfg": {"num_classes": 0}}
    (folder / "config.json").write_text(json.dumps(timm), encoding="utf-8")
