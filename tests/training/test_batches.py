"""What a batch holds, and splitting rows by their prompts."""

import tracemalloc
from types import SimpleNamespace

import datasets
import numpy as np
from PIL import Image

from training.batches import IGNORED, TextTargets, augmented, split_by_prompt


def test_neither_start_nor_padding_nor_what_is_never_written_is_learnt() -> None:
    """And no end where a text was cut."""
    words = SimpleNamespace(start_ids=[1, 9], eos_ids=(2,), pad_id=0, encode=lambda text: list(map(int, text.split())))
    batch = TextTargets(words, max_tokens=3, unknown=14)(["11 12", "11 12 13 11", "14 11 12"])
    no = IGNORED
    assert batch["input_ids"].tolist() == [[1, 9, 11, 12, 2, 0], [1, 9, 11, 12, 13, 0], [1, 9, 14, 11, 12, 2]]
    assert batch["labels"].tolist() == [[no, no, 11, 12, 2, no], [no, no, 11, 12, 13, no], [no, no, no, 11, 12, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0], [1] * 6]


def test_an_augmented_picture_is_nearly_as_large_and_often_turned_round() -> None:
    picture = Image.new("RGB", (50, 40), "blue")
    picture.paste("red", (25, 0, 50, 40))
    random = np.random.default_rng(0)
    some = [augmented(picture, random) for _ in range(40)]
    assert all(40 <= image.width <= 50 and 32 <= image.height <= 40 for image in some)
    assert len({image.size for image in some}) > 20
    at_left = [image.getpixel((image.width // 5, image.height // 2)) for image in some]
    assert 10 < sum(red > 100 > blue for red, _, blue in at_left) < 30


def test_a_long_prompt_costs_its_own_length_once() -> None:
    prompts = [f"prompt {number}" for number in range(2000)]
    rows = datasets.Dataset.from_dict({"text": [*prompts, *prompts, "long " * 2000]})
    tracemalloc.start()
    training, validation = split_by_prompt(rows, 0.1, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6  # an array of texts, each as wide as the longest, took 160 MB
    assert len(set(validation["text"])) == 200
    assert not set(validation["text"]) & set(training["text"])
    assert len(training) + len(validation) == len(rows)


def test_the_captions_of_a_picture_stand_on_one_side() -> None:
    rows = [
        {"text": f"caption {caption} of {picture}" if caption else f"said of two: {picture // 2}", "id": f"{picture}"}
        for picture in range(40)
        for caption in range(5)
    ]
    columns = {"text": [row["text"] for row in rows], "id": [row["id"] for row in rows], "source": ["coco"] * len(rows)}
    training, validation = split_by_prompt(datasets.Dataset.from_dict(columns), 0.1, seed=0)
    assert len(validation) == 20  # two of the twenty groups: two pictures each, with five captions
    assert not set(validation["id"]) & set(training["id"])
    assert not set(validation["text"]) & set(training["text"])
    large = {"text": [f"{n}" for n in range(100)], "id": ["1"] * 85 + ["2"] * 15, "source": ["x"] * 100}
    assert [len(part) for part in split_by_prompt(datasets.Dataset.from_dict(large), 0.1, seed=0)] == [85, 15]
    mixed = {**large, "id": ["1"] * 80 + [f"{n}" for n in range(80, 100)]}
    assert [len(part) for part in split_by_prompt(datasets.Dataset.from_dict(mixed), 0.1, seed=0)] == [90, 10]
    whole = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "id": ["1", "1", "1"], "source": ["x"] * 3})
    assert [len(part) for part in split_by_prompt(whole, 0.1, seed=0)] == [3, 0]
