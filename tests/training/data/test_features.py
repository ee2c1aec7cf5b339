"""Features are computed once, survive a kill, and train as the pictures themselves do."""

from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from captioner.errors import BadInput, BadOutput
from training.data import features as module
from training.data.features import cached_features, fingerprint


@pytest.fixture
def rows(tmp_path: Path) -> datasets.Dataset:
    """40 rows over 20 pictures: each has two captions."""
    random = torch.Generator().manual_seed(0)
    paths = []
    for number in range(20):
        paths.append(str(tmp_path / f"{number}.png"))
        pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=random)
        Image.fromarray(pixels.numpy()).save(paths[-1])
    texts = [f"caption {number}" for number in range(40)]
    columns = {"image": paths * 2, "text": texts, "id": texts, "source": ["here"] * 40}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


class Encoder(torch.nn.Module):
    """A frozen layer that counts the pictures it has seen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = torch.nn.Linear(192, 6)
        self.seen = 0

    def forward(self, pictures: list[Image.Image]) -> torch.Tensor:
        self.seen += len(pictures)
        pixels = torch.stack(
            [torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8) for picture in pictures]
        )
        return self.layer(pixels / 255).view(len(pictures), 2, 3)  # [B, regions, width]


def test_every_picture_once_and_again_from_disk(rows: datasets.Dataset, tmp_path: Path) -> None:
    encoder = Encoder()
    first = cached_features(rows, encoder, "key", tmp_path / "cache", batch_size=7)
    assert (len(first), encoder.seen) == (40, 20)
    with torch.no_grad():
        direct = encoder([rows[3]["image"].convert("RGB")])[0]
    torch.testing.assert_close(first[3], direct, atol=2e-3, rtol=2e-3)  # kept as float16
    assert torch.equal(first[3], first[23])
    encoder.seen = 0
    again = cached_features(rows.select(range(5, 25)), encoder, "key", tmp_path / "cache")
    assert encoder.seen == 0
    assert torch.equal(again[0], first[5])
    cached_features(rows, encoder, "other", tmp_path / "cache")
    assert encoder.seen == 20


def test_a_folder_that_cannot_be_is_told_before_a_picture_is_read(rows: datasets.Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    encoder = Encoder()
    with pytest.raises(BadOutput, match=r"Features cannot be kept in .*file/key-float16 \(.*name another folder"):
        cached_features(rows, encoder, "key", tmp_path / "file")
    assert encoder.seen == 0


def test_a_killed_run_goes_on(rows: datasets.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 1)  # a shard a batch
    encoder = Encoder()

    def dies(pictures: list[Image.Image]) -> torch.Tensor:
        if encoder.seen == 12:
            raise KeyboardInterrupt
        return encoder(pictures)

    with pytest.raises(KeyboardInterrupt):
        cached_features(rows, dies, "key", tmp_path / "cache", batch_size=4)
    shards = sorted((tmp_path / "cache" / "key-float16").iterdir())
    assert len(shards) == 3
    shards[0].write_bytes(shards[0].read_bytes()[:50])  # and the disk has damaged one
    encoder.seen = 0
    assert len(cached_features(rows, encoder, "key", tmp_path / "cache", batch_size=4)) == 40
    assert encoder.seen == 12


def test_a_changed_picture_is_encoded_anew(rows: datasets.Dataset, tmp_path: Path) -> None:
    encoder = Encoder()
    before = cached_features(rows, encoder, "key", tmp_path / "cache")[0]
    Image.new("RGB", (8, 8), "red").save(tmp_path / "0.png")
    after = cached_features(rows, encoder, "key", tmp_path / "cache")
    assert encoder.seen == 21
    assert not torch.equal(before, after[0])


def test_unreadable_pictures_leave_the_rows(rows: datasets.Dataset, tmp_path: Path) -> None:
    (tmp_path / "19.png").write_bytes(b"no picture")
    twenty = rows.select([*range(20), *range(20)])
    cached = cached_features(twenty, Encoder(), "key", tmp_path / "cache", batch_size=19)
    assert len(cached) == len(cached.rows) == 38
    assert "caption 19" not in cached.rows["text"]
    (tmp_path / "18.png").unlink()
    with pytest.raises(BadInput, match="4 of 40"):
        cached_features(twenty, Encoder(), "key", tmp_path / "cache")


def test_what_does_not_fit_into_float16_is_said(rows: datasets.Dataset, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"do not fit into torch\.float16: leave out --cache-features"):
        cached_features(rows, lambda pictures: torch.full((len(pictures), 2), 1e6), "key", tmp_path / "cache")


def test_the_fingerprint_follows_weights_and_preprocessing() -> None:
    encoder = Encoder()
    assert fingerprint(encoder, 8) == fingerprint(Encoder(), 8) != fingerprint(encoder, 9)
    before = fingerprint(encoder)
    encoder.layer.bias.data[0] += 1e-4
    assert fingerprint(encoder) != before


def test_training_from_the_cache_gives_the_same_losses(rows, tmp_path: Path, tiny_checkpoint) -> None:
    from captioner.models.blip import Blip, BlipProcessor
    from training.batches import TextTargets

    folder = tiny_checkpoint("blip")
    processor = BlipProcessor.from_folder(folder)
    targets = TextTargets(processor, max_tokens=8)
    frozen = Blip.from_pretrained(folder).eval()
    cached = cached_features(
        rows,
        lambda pictures: frozen.encode(processor.preprocess(pictures)),
        fingerprint(frozen.vision_model),
        tmp_path / "cache",
        batch_size=4,
        dtype=torch.float32,
    )

    def losses(seen_of) -> list[float]:
        model = Blip.from_pretrained(folder).eval()
        model.vision_model.requires_grad_(False)
        learning = torch.optim.AdamW(model.text_decoder.parameters(), 0.01)
        said = []
        for start in range(0, 12, 4):
            batch = rows.select(range(start, start + 4))
            loss = model(**seen_of(start), **targets(batch["text"])).loss
            loss.backward()
            learning.step()
            learning.zero_grad()
            said.append(loss.item())
        return said

    def pixels(start: int) -> dict[str, torch.Tensor]:
        pictures = [rows[index]["image"].convert("RGB") for index in range(start, start + 4)]
        return {"pixel_values": processor.preprocess(pictures)}

    from_cache = losses(lambda start: {"features": torch.stack([cached[index] for index in range(start, start + 4)])})
    assert from_cache == pytest.approx(losses(pixels), rel=1e-4)  # the tower's own code rounds otherwise
    assert from_cache[0] != from_cache[-1]
