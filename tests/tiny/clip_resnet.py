"""A CLIP of ResNet form in the files that open_clip writes: narrow, its text tower a stub, 64 pixels a side."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from captioner.models.parts.backbones.clip_resnet import CLIPResNetTower

SETTINGS = {"layers": [1, 2, 1, 1], "width": 4, "image_size": 64, "output_dim": 16}


def tower(seed: int = 0) -> CLIPResNetTower:
    """Random weights and statistics."""
    torch.manual_seed(seed)
    made = CLIPResNetTower(**SETTINGS)
    with torch.no_grad():
        for name, values in [*made.named_parameters(), *made.named_buffers()]:
            if name.endswith("running_var"):
                values.uniform_(0.5, 2)
            elif values.is_floating_point():
                values.normal_(std=0.5 if values.ndim == 1 else values[0].numel() ** -0.5)
    return made.eval()


def make(folder: Path) -> None:
    state = {f"visual.{key}": tensor for key, tensor in tower().state_dict().items()}
    save_file(state | {"logit_scale": torch.tensor(4.6)}, folder / "open_clip_model.safetensors")
    vision = {"image_size": 64, "layers": SETTINGS["layers"], "width": 4, "patch_size": None}
    said = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    config = json.dumps({"model_cfg": said, "preprocess_cfg": pixels})
    (folder / "open_clip_config.json").write_text(config, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"architecture": "resnet50_clip"}), encoding="utf-8")
