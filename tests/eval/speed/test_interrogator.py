"""What the interrogator's speed is compared with chooses the same texts, and its rows hold what they say."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from captioner.contracts import LoadOptions
from captioner.models.interrogator.interrogator import Chooser
from captioner.models.interrogator.tables import TermTable, TermTables
from captioner.models.parts.ranker import Ranker
from eval.speed import interrogator

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWERS = {"text": TINY, "vision": TINY | {"patch_size": 8}}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ranker, interrogator.PublishedWay]:
    """Ours and the package's, over the same tiny CLIP in double precision."""
    folder = interrogator.random_clip(tmp_path_factory.mktemp("clip"), TOWERS, 32)
    ours = Ranker.from_folder(folder, LoadOptions(device="cpu", precision="float64"))
    return ours, interrogator.PublishedWay(CLIPModel.from_pretrained(folder).double().eval(), ours.tokenizer)


def test_both_ways_choose_the_same_texts(ways: tuple[Ranker, interrogator.PublishedWay]) -> None:
    ours, theirs = ways
    terms = interrogator.terms_of(10)
    starts = ["a red cat", "two ships at sea, oil on canvas"]
    pictures = F.normalize(torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)
    choose = Chooser(ours, TermTables({}, TermTable([], torch.empty(0, 0))))
    expected = [theirs.chain(picture, terms, start, 9) for picture, start in zip(pictures, starts, strict=True)]
    assert choose.chain(pictures, starts, [terms, terms], 9) == expected
    assert all(len(text) > len(start) for text, start in zip(expected, starts, strict=True))


def test_rows_are_ratios_of_one_run(
    ways: tuple[Ranker, interrogator.PublishedWay], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, small in (("PICTURES", 2), ("CANDIDATES", 4), ("READ", 8), ("READ_WHOLE", 4), ("REPEATS", 1)):
        monkeypatch.setattr(interrogator, name, small)
    chain, alone = interrogator.chains(*ways, "float64")
    read = interrogator.reading(*ways, "float64")
    ranked = interrogator.ranking(torch.Generator().manual_seed(0), 3_000, 5, 8)
    assert chain.target == "≥ 8.00"
    for row in (chain, alone, read, ranked):
        assert row.median > 0
    (took,), (they_took,) = chain.details["seconds"], chain.details["seconds_published_one_picture"]
    assert chain.ratios == [2 * they_took / took]


def test_terms_begin_alike_and_are_never_the_same() -> None:
    terms = interrogator.terms_of(500)
    assert len(set(terms)) == 500
    assert len({term.split()[0] for term in terms}) < 450
