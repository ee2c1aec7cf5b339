"""The models of one device, and how they answer a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor

from captioner import zoo
from captioner.contracts import LoadOptions, MetadataUse
from captioner.errors import BadAnswer, BadCheckpoint, BadImage, BadInput, CaptionerError
from captioner.images import MAX_PIXELS
from captioner.images.metadata import read_parameters
from captioner.images.open import bytes_of, open_named
from captioner.models.parts.speaker import SearchedDecoder, seed_of
from captioner.pipeline import NO_TEXT, Captioner, DirectEmbedder
from captioner.prompt import Prompt, Reading
from captioner.run import questions
from captioner.run.batch import DAMAGED
from captioner.serving.memories import Memories, Remembered
from captioner.serving.scheduler import Opened
from captioner.sinks import Row, is_finite
from captioner.text.finish import Finish

if TYPE_CHECKING:
    from captioner.models.knn.knn import Knn
    from captioner.serving.engine import Ask, Picture

Model = Captioner | DirectEmbedder


@dataclass(frozen=True)
class Pixels:
    """A picture as an encoder takes it."""

    pixels: Tensor
    """`[1, 3, h, w]`"""
    seed: int
    """What a sampled text depends on."""


class Bench:
    """Loads each model once, when it is first asked."""

    def __init__(
        self, options: LoadOptions, memories: Memories, index: Path | None, batch_size: int | None = None
    ) -> None:
        """batch_size: None for as many pictures as fit into memory."""
        self.options = options
        self.memories = memories
        self.index = index
        self._batch_size = batch_size
        self._models: dict[str, questions.Model] = {}
        self._sizes: dict[str, int] = {}

    def load(self, name: str) -> Model:
        """The model of this name."""
        return self._model(name).loaded

    def batch_size(self, name: str) -> int:
        """Pictures at a time; of a model that is still to be loaded, the first alone."""
        return self._batch_size or self._sizes.get(name, 1)

    def _model(self, name: str) -> questions.Model:
        if name not in self._models:
            model = questions.Model(name, self.options)
            model.loaded  # noqa: B018 - a model that cannot be loaded is not kept
            self._models[name] = model
            self._sizes[name] = model.batch_size()
        return self._models[name]

    @cached_property
    def neighbours(self) -> Knn:
        """The index of reference pictures."""
        from captioner.models.knn import knn

        if self.index is None:
            raise BadInput("No index of reference pictures is loaded.")
        return knn.load(self.index, replace(self.options, embedder=None))

    # --- reading, in threads -----------------------------------------------------------------------------------------

    def open(self, ask: Ask, picture: Picture, admit: Callable[[int], object]) -> Opened:
        """All that can be done for a picture without the model's own thread."""
        if ask.metadata != "ignore" and (row := _carried(picture, ask.metadata, ask.finish)) is not None:
            return Opened(row)
        speaker = self._searched(ask.model)
        if speaker is not None:
            memory = self.memories.get(_key(ask, speaker, picture))
            if memory is not None:
                return Opened(memory)
        image = open_named(picture.data, picture.title, MAX_PIXELS, admit, self._side(ask.model))
        if speaker is None:
            return Opened(image, bytes_of(image))
        pixels = _pixels(speaker, image)
        return Opened(pixels, pixels.pixels.nbytes)

    def _searched(self, name: str) -> SearchedDecoder | None:
        """A model that encodes first, if it is loaded already."""
        model = self._models.get(name)
        speaker = model.loaded.speaker if model is not None else None
        return speaker if isinstance(speaker, SearchedDecoder) else None

    def _side(self, name: str) -> int | None:
        model = self._models.get(name)
        return zoo.resolve(name).side if model is None else model.side

    # --- answering, in the thread of the device ----------------------------------------------------------------------

    def answer_pictures(
        self, asks: Sequence[Ask], pictures: Sequence[Picture], opened: Sequence[Any]
    ) -> list[Row | CaptionerError]:
        """A row for each picture; all are asked the same, and may want it finished differently."""
        model = self.load(asks[0].model)
        # One that carries its prompt is opened to its row.
        waiting = [one for one in zip(asks, pictures, opened, strict=True) if not isinstance(one[2], dict)]
        answers = iter(self._answers(model, *zip(*waiting, strict=True)) if waiting else ())
        rows = [value if isinstance(value, dict) else next(answers) for value in opened]
        self._embed_rows(asks, rows)
        return [_checked(row) for row in rows]

    def _answers(
        self, model: Model, asks: Sequence[Ask], pictures: Sequence[Picture], opened: Sequence[Any]
    ) -> Sequence[Row | CaptionerError]:
        """What the model says of each picture, or gives at once."""
        request, expected = asks[0].request, asks[0].expected
        if isinstance(model, Captioner):
            if expected:
                model.check_expected(request)
            return _finished(model, self._readings(model, asks, pictures, opened), asks)
        images = [image for ask, image in zip(asks, opened, strict=True) if ask.wants == "embedding"]
        vectors = iter(model.embed(images, request, len(images), expected) if images else ())
        return [  # one batch may be of both kinds
            {"embedding": questions.as_numbers(next(vectors))}
            if ask.wants == "embedding"
            else BadInput(NO_TEXT.format(model.name))
            for ask in asks
        ]

    def _readings(
        self, model: Captioner, asks: Sequence[Ask], pictures: Sequence[Picture], opened: Sequence[Any]
    ) -> list[Reading]:
        request, speaker = asks[0].request, model.speaker
        decoding = model.settings(request)
        if not isinstance(speaker, SearchedDecoder):
            return speaker.read_images(opened, decoding, request)
        memories = self._encoded(speaker, asks, pictures, opened)
        features = torch.cat([memory.features.to(speaker.model.device) for memory in memories])
        seeds = [memory.seed for memory in memories] if decoding.do_sample else None
        return speaker.read_features(features, seeds, decoding, request)

    def _encoded(
        self, speaker: SearchedDecoder, asks: Sequence[Ask], pictures: Sequence[Picture], opened: Sequence[Any]
    ) -> list[Remembered]:
        """All pictures encoded: those that are not remembered in one batch, each once."""
        keys = [_key(ask, speaker, picture) for ask, picture in zip(asks, pictures, strict=True)]
        known = {key: value for key, value in zip(keys, opened, strict=True) if isinstance(value, Remembered)}
        new: dict[Hashable, Pixels] = {}
        for key, value in dict(zip(keys, opened, strict=True)).items():
            if key in known:
                continue
            if (kept := self.memories.get(key, counted=False)) is not None:  # encoded since it was opened
                known[key] = kept
            else:
                new[key] = _pixels(speaker, value) if isinstance(value, Image) else value
        if new:
            features = speaker.encode(torch.cat([pixels.pixels for pixels in new.values()]), asks[0].request)
            for key, pixels, row in zip(new, new.values(), features.split(1), strict=True):
                known[key] = Remembered(row.clone(), pixels.seed)
                self.memories.keep(key, known[key])
        return [known[key] for key in keys]

    def _embed_rows(self, asks: Sequence[Ask], rows: list[Row | CaptionerError]) -> None:
        """Add the embeddings of the texts that are asked for."""
        wanting = [row for ask, row in zip(asks, rows, strict=True) if isinstance(row, dict) and ask.embeds(row)]
        if wanting:
            for row, vector in zip(wanting, self.embed_texts([row["text"] for row in wanting]), strict=True):
                row["embedding"] = vector
        for ask, answer in zip(asks, rows, strict=True):
            if isinstance(answer, dict) and ask.wants == "embedding":
                answer.pop("text", None)

    def embed_texts(self, texts: Sequence[str]) -> list[list[float]]:
        """Unit vectors of texts."""
        from captioner.text.embedding import text_embedder

        readable = [text.encode("utf-8", "replace").decode() for text in texts]  # half a surrogate pair is no text
        return [questions.as_numbers(vector) for vector in text_embedder(self.options.embedder)(readable)]

    def similar(self, images: Sequence[Image], count: int) -> list[Row]:
        """The reference pictures that look most like each."""
        answers = self.neighbours.similar(images, count)
        return [
            {"similar": [{"picture": n.picture, "prompt": n.prompt, "similarity": n.similarity} for n in near]}
            for near in answers
        ]


def _key(ask: Ask, speaker: SearchedDecoder, picture: Picture) -> Hashable:
    return ask.model, speaker.encoded_by(ask.request), picture.digest


def _pixels(speaker: SearchedDecoder, image: Image) -> Pixels:
    pixels = speaker.processor.preprocess([image])
    return Pixels(pixels, seed_of(pixels[0]))


def _carried(picture: Picture, metadata: MetadataUse, finish: Finish) -> Row | None:
    """The prompt that a picture carries, if that is what is asked for."""
    carried = read_parameters(picture.data, picture.title)
    if carried is not None and carried.prompt:
        return questions.row_of_carried(carried.prompt, finish)
    if metadata == "only":
        raise BadImage(f"{picture.title} carries no prompt.")
    return None


def _finished(model: Captioner, readings: Sequence[Reading], asks: Sequence[Ask]) -> list[Row | CaptionerError]:
    """A row for each picture."""
    if asks[0].expected:  # which is the same of all of a batch
        finish = Finish(consensus=False)
        return [{"embedding": questions.as_numbers(model.expected(reading, finish))} for reading in readings]
    try:
        prompts = model.prompts(readings, [ask.finish for ask in asks])
    except BadAnswer as error:
        if len(readings) == 1:
            return [error]
        return [_finished(model, [reading], [ask])[0] for reading, ask in zip(readings, asks, strict=True)]
    return list(map(_row, prompts, asks))


def _row(prompt: Prompt, ask: Ask) -> Row:
    return {"text": prompt.text} if ask.wants == "embedding" else questions.row_of(prompt)


def _checked(row: Row | CaptionerError) -> Row | CaptionerError:
    return BadCheckpoint(DAMAGED) if isinstance(row, dict) and not is_finite(row) else row
