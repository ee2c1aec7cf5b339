"""text-embeddings-inference's routes, asked by huggingface_hub's client and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from captioner.text.embedding import text_embedder
from captioner.web.routes.tei import error
from tests.web.routes.conftest import Service

TEXTS = ["a cat", "a castle in the clouds, oil painting"]


@pytest.mark.usefixtures("_online")
def test_the_hubs_client_embeds(service: Service) -> None:
    client = InferenceClient(f"{service.address}/embed")
    expected = text_embedder()(TEXTS)
    one = client.feature_extraction(TEXTS[0], normalize=True, truncate=True)
    np.testing.assert_allclose(one, expected[:1], atol=1e-6)
    answer = service.post("/embed", {"inputs": TEXTS, "normalize": True, "truncate": False})
    np.testing.assert_allclose(answer.json(), expected, atol=1e-6)
    assert len(service.post("/embed", {"inputs": "a", "dimensions": 100}).json()[0]) == 100


def test_half_a_surrogate_pair_is_a_text(service: Service) -> None:
    assert service.post("/embed", {"inputs": ["\ud800"]}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422),
        ({"inputs": []}, 422),
        ({"inputs": 3}, 422),
        ({"inputs": [["a", "b"]]}, 422),
        ({"inputs": "a", "dimensions": 1000}, 422),
        ({"inputs": ["a"] * 3000}, 413),
        ("text", 422),
    ],
)
def test_what_is_wrong(service: Service, body: object, status: int) -> None:
    answer = service.post("/embed", body)
    assert answer.status_code == status
    assert answer.json()["error_type"] == "Validation"
    assert answer.json()["error"]


def test_overload_is_worded_as_clients_know_it() -> None:
    assert error(429, "So many wait.") == {"error": "Model is overloaded", "error_type": "overloaded"}


def test_info(service: Service) -> None:
    about = service.get("/info").json()
    assert about["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert about["max_client_batch_size"] == 2048
