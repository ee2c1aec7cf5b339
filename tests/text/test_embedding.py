"""The lean MiniLM gives what sentence-transformers gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from captioner.compute import has_avx512
from captioner.errors import MissingModel
from captioner.text.bert import Bert
from captioner.text.embedding import suits, text_embedder
from captioner.text.minilm import BATCH_TOKENS, packaged_minilm, split

TEXTS = [
    "a cat",
    "",
    "ultrasaurus holding a black bean taco in the woods, near an identical cheneosaurus",
    "Überraschung — 猫と犬, octane render 8k",
    "very long " * 400,
]


def test_equals_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(packaged_minilm())).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(text_embedder()(TEXTS), theirs, atol=2e-6)


def test_half_of_the_memory_gives_nearly_the_same_numbers() -> None:
    np.testing.assert_allclose(text_embedder(precision="fp16")(TEXTS), text_embedder()(TEXTS), atol=5e-4)


def test_golden_cosine_of_a_published_pair() -> None:
    said = (
        "a cartoon dinosaur with a piece of cheese in its mouth, an illustration of, sumatraism, mmmmm, "
        "buttercup eating pizza, pastry lizard"
    )
    truth, prediction = text_embedder()([TEXTS[2], said])
    assert truth @ prediction == pytest.approx(0.3790, abs=1e-4)


def test_order_batches_and_norm() -> None:
    embed = text_embedder()
    texts = [f"prompt number {i} " * (i % 7 + 1) for i in range(70)]
    together = embed(texts)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together[13], embed([texts[13]])[0], atol=1e-5)
    assert embed([]).shape == (0, 384)


def test_batches_have_about_as_many_tokens_each_and_every_text_once() -> None:
    lengths = [n * 37 % 100 + 2 for n in range(100)]
    batches = split(lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(100))
    assert [lengths[row] for batch in batches for row in batch] == sorted(lengths)
    sizes = [sum(lengths[row] for row in batch) for batch in batches]
    assert max(sizes) < 1.5 * BATCH_TOKENS + 102
    assert max(sizes) - min(sizes) < 2 * 102
    assert split([300, 2, 300]) == [[1, 0, 2]]
    assert split([]) == []


def test_another_embedder_from_a_folder_and_a_missing_one() -> None:
    foreign = text_embedder(str(packaged_minilm()))
    np.testing.assert_allclose(foreign(TEXTS[:1]), text_embedder()(TEXTS[:1]), atol=1e-5)
    with pytest.raises(MissingModel, match="no-such/embedder"):
        text_embedder("no-such/embedder")


def test_an_embedder_that_cannot_be_fetched_is_one_quick_line(tmp_path: Path) -> None:
    script = """
from captioner import zoo
from captioner.text import embedding
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
asked = []
def no_network(self, name, **_):
    asked.append(name)
    raise OfflineModeIsEnabled("no network")
HfApi.model_info = no_network
try:
    embedding.text_embedder("all-mpnet-base-v2")
except embedding.MissingModel as error:
    print(asked, error)
import sys
assert "sentence_transformers" not in sys.modules
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    [line] = done.stdout.splitlines()
    name = "sentence-transformers/all-mpnet-base-v2"
    missing = f"There is no folder {name}; as a model of the Hub it is not in the local cache"
    assert line.startswith(f"['{name}'] {missing}")


def test_one_embedder_has_several_names() -> None:
    assert suits(None, "mpnet")
    assert suits("mpnet", "mpnet")
    assert suits("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
    assert suits("sentence-transformers/mpnet", "mpnet")
    assert not suits("mpnet", "all-MiniLM-L6-v2")


def test_minilm_is_in_memory_once_and_what_is_packed_is_not_mapped_as_well() -> None:
    assert text_embedder("all-MiniLM-L6-v2") is text_embedder()
    if not has_avx512() or not Path("/proc/self/maps").exists():
        pytest.skip("small layers are packed with AVX-512, mappings are told by Linux")
    before = mapped()
    bert = Bert(packaged_minilm())
    assert mapped() - before == 1  # of the words
    assert bert.words.shape == (30522, 384)


def mapped() -> int:
    """How often the weights lie in this process's memory as a file."""
    file = str(packaged_minilm() / "model.safetensors")
    return Path("/proc/self/maps").read_text(encoding="utf-8").count(file)
