"""Durations and names as messages and cards say them."""

import pytest

from training.words import duration, without_folders


@pytest.mark.parametrize(
    ("argument", "public"),
    [
        ("/home/me/cats", "cats"),
        ("/home/me/cats/", "cats"),
        ("~/cats", "cats"),
        ("--out=/home/me/runs/one", "--out=one"),
        ("kaggle:/data/kaggle@2", "kaggle:kaggle@2"),
        ("C:\\Users\\me\\cats", "cats"),
        ("hub:somebody/cats", "hub:somebody/cats"),
        ("Salesforce/blip", "Salesforce/blip"),
        ("cats", "cats"),
        ("../cats", "../cats"),
        ("1e-4", "1e-4"),
        ("--lora", "--lora"),
    ],
)
def test_without_folders(argument: str, public: str) -> None:
    assert without_folders(argument) == public


def test_duration() -> None:
    assert [duration(s) for s in (3.4, 119, 600, 12_000)] == ["3 s", "2 min", "10 min", "3 h 20 min"]
