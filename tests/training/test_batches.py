"""Splitting rows by their prompts."""

import tracemalloc

import datasets

from training.batches import split_by_prompt


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
