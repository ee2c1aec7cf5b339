"""CLIP's image towers of ResNet form: numbers, the files of open_clip, and folders that are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from captioner.errors import BadCheckpoint
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.clip_resnet import CLIPResNetTower
from tests import decoders
from tests.tiny import clip_resnet as tiny

GOLDEN = [0.058212, -1.245678, 0.632111, -0.01068]
"""The first numbers of an embedding. open_clip's own class gave the same from these weights (within 3e-15 in float64,
for RN50x4 in full size within 2e-14)."""


def test_golden_embedding():
    tower = tiny.tower().double()
    pixels = torch.linspace(-1, 1, 3 * 64 * 64, dtype=torch.float64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        embedding = tower.attnpool(tower(pixels))
    assert embedding.shape == (1, 16)
    assert embedding[0, :4].tolist() == pytest.approx(GOLDEN, abs=1e-5)


def test_rn50x4_has_its_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in CLIPResNetTower(**backbones.RN50X4).parameters()) == 87_137_080


def test_a_folder_of_open_clip_is_a_backbone(tiny_checkpoint):
    backbone = backbones.build("clip-resnet", tiny_checkpoint("clip_resnet")).eval()
    again = backbones.from_config(json.loads(json.dumps(backbone.config))).eval()
    again.load_state_dict(backbone.state_dict())
    pixels = backbone.preprocess(decoders.pictures(2))
    assert (backbone.preprocess.size, backbone.preprocess.mean) == (64, (0.5, 0.4, 0.3))
    with torch.no_grad():
        assert backbone.pooled(pixels).shape == (2, backbone.width) == (2, 16)
        assert backbone.grid(pixels).shape == (2, 4, backbone.grid_width) == (2, 4, 128)
        torch.testing.assert_close(again.pooled(pixels), backbone.pooled(pixels))
    backbone.thaw(1)
    assert not backbone.tower.layer3[0].conv1.weight.requires_grad
    assert backbone.tower.layer4[0].conv1.weight.requires_grad


def changed(folder: Path, **vision: object) -> None:
    said = json.loads((folder / "open_clip_config.json").read_text())
    said["model_cfg"]["vision_cfg"] |= vision
    (folder / "open_clip_config.json").write_text(json.dumps(said))


BROKEN = {
    "does not name four stages": lambda folder: changed(folder, layers=12),
    "says layers = 1000000": lambda folder: changed(folder, layers=[1, 10**6, 1, 1]),
    "says width = 'wide'": lambda folder: changed(folder, width="wide"),
    "says image_size = -64": lambda folder: changed(folder, image_size=-64),
    "image_size at least 32": lambda folder: changed(folder, image_size=16),
    r"'attnpool.positional_embedding' is missing, unknown or of another size": lambda f: changed(f, image_size=96),
    "has no open_clip_model.safetensors": lambda folder: (folder / "open_clip_model.safetensors").unlink(),
    "A CLIP of ResNet form is a folder": lambda folder: (folder / "open_clip_config.json").unlink(),
    "damaged or cut short": lambda folder: (folder / "open_clip_model.safetensors").write_bytes(b"junk" * 9),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_folders_are_named(fault, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("clip_resnet"), tmp_path / "clip")
    BROKEN[fault](folder)
    with pytest.raises(BadCheckpoint, match=fault):
        backbones.build("clip-resnet", folder)
