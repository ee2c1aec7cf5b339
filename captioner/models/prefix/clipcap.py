"""Published ClipCap checkpoints (.pt) → a folder of the clip-prefix family, without running any code of the file.

Such a file holds mapper and GPT-2 only. The CLIP that made its image embeddings, and GPT-2's vocabulary, are taken
from checkpoints of their own and saved along, so that the folder needs nothing else.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from captioner import zoo
from captioner.errors import BadCheckpoint, BadInput, BadOutput
from captioner.files.atomic import replacing_folder
from captioner.models.parts.backbones import backbones, clip_resnet
from captioner.models.parts.checkpoint import BUFFERS, read_config, reading
from captioner.models.prefix.clip_prefix import ClipPrefix, ClipPrefixConfig

CLIP_OF = {512: "openai/clip-vit-base-patch32", 640: "timm/resnet50x4_clip.openai"}
"""The CLIP of the published checkpoints, by the length of its embeddings."""
NORMALIZED = {("mlp", 512, 10): False, ("transformer", 640, 40): True}
"""Whether the published ones read image embeddings of length 1, by mapper, length of an embedding and of the prefix.
The files do not say: it is an option of ClipCap's training, and a line of its notebooks."""
DECODING = {"num_beams": 5, "max_new_tokens": 67, "length_penalty": 1.0}
FULL_STOP = 13
TORCH_FILES = (b"PK", b"\x80\x02")
"""How torch's files begin: an archive, or a pickle in its older form."""


def convert(
    file: Path,
    out: Path,
    clip: str | None = None,
    gpt2: str = "gpt2",
    mapper_heads: int = 8,
    normalize: bool | None = None,
) -> bool:
    """Write the folder `out`; says whether its mapper reads image embeddings of length 1.

    clip and gpt2 are folders or Hub ids. normalize: None where it is one of the published ones.
    """
    if out.exists():
        raise BadOutput(f"{out} exists already. Name a folder that does not.")
    state = _published(file)
    mapper = _mapper_settings(state)
    if normalize is None:
        normalize = _normalized(mapper)
    backbone = _backbone(clip, mapper["joint_dim"])
    gpt2_folder = zoo.weights_folder(gpt2)
    with reading(gpt2_folder):
        gpt2_config = AutoConfig.from_pretrained(gpt2_folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(gpt2_folder, local_files_only=True).backend_tokenizer
    config = ClipPrefixConfig(
        backbone=backbone.config,
        gpt2=gpt2_config.to_diff_dict(),
        eos_ids=[FULL_STOP],
        pad_id=gpt2_config.eos_token_id,
        mapper_heads=mapper_heads,
        normalize=normalize,
        **mapper,
    )
    model = ClipPrefix(config)
    model.backbone = backbone
    ours = {_our_name(key): tensor for key, tensor in state.items() if not key.endswith(BUFFERS)}
    wanted = {key for key in model.state_dict() if not key.startswith("backbone.")}
    if strangers := wanted ^ ours.keys():
        raise BadCheckpoint(f"{file} is no ClipCap checkpoint with this GPT-2: {sorted(strangers)[0]} does not fit.")
    with reading(file):
        model.load_state_dict(ours, strict=False)
    _save(model, tokenizer, out)
    return normalize


def _published(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise BadInput(f"{file} is no file: name a published ClipCap file (.pt).")
    with reading(file):
        with file.open("rb") as stream:
            begins = stream.read(2)
        if begins not in TORCH_FILES:
            raise BadCheckpoint(f"{file} is no checkpoint of torch. Name a published ClipCap file (.pt).")
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not any(str(key).startswith("clip_project.") for key in state):
        raise BadCheckpoint(f"{file} is no ClipCap checkpoint: it has no clip_project weights.")
    return state


def _mapper_settings(state: dict[str, Tensor]) -> dict:
    """Which mapper it is, and its sizes, as the tensors' shapes tell."""
    try:
        width = state["gpt.transformer.wte.weight"].shape[1]
        if "clip_project.model.2.weight" in state:
            prefix = state["clip_project.model.2.weight"].shape[0] // width
            return {
                "mapper": "mlp",
                "joint_dim": state["clip_project.model.0.weight"].shape[1],
                "prefix_length": prefix,
            }
        if "clip_project.weight" in state:
            linear = state["clip_project.weight"]
            return {"mapper": "linear", "joint_dim": linear.shape[1], "prefix_length": linear.shape[0] // width}
        linear = state["clip_project.linear.weight"]
        layers = {key.split(".")[3] for key in state if key.startswith("clip_project.transformer.layers.")}
        return {
            "mapper": "transformer",
            "joint_dim": linear.shape[1],
            "clip_length": linear.shape[0] // width,
            "prefix_length": len(state["clip_project.prefix_const"]),
            "mapper_layers": len(layers),
        }
    except KeyError as error:
        raise BadCheckpoint(f"This is no ClipCap checkpoint: it has no {error}.") from error


def _normalized(mapper: dict) -> bool:
    form = (mapper["mapper"], mapper["joint_dim"], mapper["prefix_length"])
    if form not in NORMALIZED:
        raise BadInput(
            "This is none of the published forms, and a file does not say whether its mapper reads image embeddings of "
            "length 1 (ClipCap's --normalize_prefix): set normalize to true or false."
        )
    return NORMALIZED[form]


def _backbone(clip: str | None, joint_dim: int) -> backbones.Backbone:
    clip = clip or CLIP_OF.get(joint_dim)
    if clip is None:
        raise BadInput(f"The mapper reads embeddings of length {joint_dim}: name the CLIP that makes them as clip.")
    folder = zoo.weights_folder(clip)
    is_plain = (folder / "config.json").is_file() and "model_type" in read_config(folder)
    kind = "clip" if is_plain or not (folder / clip_resnet.CONFIG).is_file() else "clip-resnet"
    backbone = backbones.build(kind, folder)
    backbone.preprocess = replace(backbone.preprocess, rounded=True)  # ClipCap learnt from what torchvision cut out
    if backbone.width != joint_dim:
        raise BadInput(f"The mapper reads embeddings of length {joint_dim}, {clip} makes {backbone.width}.")
    return backbone


def _our_name(key: str) -> str:
    return "mapper." + key.removeprefix("clip_project.") if key.startswith("clip_project.") else key


def _save(model: ClipPrefix, tokenizer, out: Path) -> None:
    """All of the folder or nothing of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(out) as new:
        model.save_pretrained(new)
        tokenizer.save(str(new / "tokenizer.json"))
        (new / "decoding.json").write_text(json.dumps(DECODING, indent=1) + "\n", encoding="utf-8")
