"""Encoded pictures: the least recently used go first, and never more bytes than allowed."""

import torch

from captioner.serving.memories import Memories, Remembered


def picture(number: float, length: int = 10) -> Remembered:
    return Remembered(torch.full((1, length), float(number)), seed=int(number))  # 4 bytes each


def test_the_least_recently_used_gives_way() -> None:
    memories = Memories(limit=80)
    memories.keep("first", picture(1))
    memories.keep("second", picture(2))
    assert memories.get("first") is not None  # used again, so the second one is older now
    memories.keep("third", picture(3))
    assert [memories.get(key) is not None for key in ("first", "second", "third")] == [True, False, True]
    assert (memories.bytes, len(memories), memories.hits, memories.misses) == (80, 2, 3, 1)


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    memories = Memories(limit=80)
    memories.keep("small", picture(1))
    memories.keep("large", picture(2, length=21))
    assert memories.get("large") is None
    assert memories.get("small") is not None


def test_the_same_key_is_counted_once() -> None:
    memories = Memories(limit=80)
    memories.keep("picture", picture(1))
    memories.keep("picture", picture(2, length=5))
    assert memories.bytes == 20
