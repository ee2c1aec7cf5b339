"""The tools that a language model is offered by the Model Context Protocol: caption a picture, read the prompt that it
carries, compare two prompts. `routes/mcp.py` offers them over HTTP, `captioner mcp` on standard input and output.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import mcp_types as types
import numpy as np
from mcp.server.lowlevel import Server
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from captioner import __version__
from captioner.errors import BadImage, BadInput, CaptionerError, one_line, printable
from captioner.files.names import path_of
from captioner.images import is_url
from captioner.images.metadata import Parameters, read_parameters
from captioner.images.open import open_file
from captioner.run.templates import literal
from captioner.serving.engine import Engine, Picture
from captioner.serving.scheduler import Late
from captioner.styles import STYLES
from captioner.text.similarity import likeness
from captioner.web import inputs
from captioner.web.errors import validation
from captioner.web.settings import Settings

MOST_CANDIDATES = 32
MOST_LETTERS = 20_000
"""Of a prompt that is compared: the time this takes grows with the product of the lengths."""
INSTRUCTIONS = (
    "captioner writes the text-to-image prompt that could have made a picture, reads the prompt that a program wrote "
    "into it, and tells how near two prompts are."
)


# --- what is asked and answered --------------------------------------------------------------------------------------


class OfPicture(BaseModel):
    """A picture, by one of the three. Language models that are to fill in all fields leave the others empty."""

    model_config = ConfigDict(extra="forbid")

    path: str | None = Field(None, description="A picture's file.")
    address: str | None = Field(None, description="The http or https address of a picture.")
    base64: str | None = Field(None, description="The picture itself, as base64 or as a data URL.")


class CaptionImage(OfPicture):
    """What `caption_image` takes."""

    model: str | None = Field(None, description="The model that is asked; left out, the first.")
    instruction: str | None = Field(
        None, description="What to write, for models that can be asked anything; others refuse it."
    )
    style: str | None = Field(
        None, description=f"One of {', '.join(STYLES)}, for models that can be asked; others refuse it."
    )
    num_candidates: int | None = Field(None, ge=1, le=MOST_CANDIDATES, description="How many texts to choose among.")


class Caption(BaseModel):
    """What `caption_image` gives."""

    text: str
    model: str
    score: float = Field(description="Log-probability per token; higher is surer.")
    candidates: list[str] = Field(description="All that the model proposes, the best first.")


class Carried(BaseModel):
    """What `read_prompt` gives."""

    parameters: dict[str, str | int | float | None] | None = Field(
        description="Prompt, negative prompt, seed and so on, by the picture's own account; null where it carries none."
    )


class ComparePrompts(BaseModel):
    """What `compare_prompts` takes."""

    model_config = ConfigDict(extra="forbid")

    first: str = Field(max_length=MOST_LETTERS)
    second: str = Field(max_length=MOST_LETTERS)


class Comparison(BaseModel):
    """What `compare_prompts` gives."""

    cosine: float = Field(description="Of the embeddings (MiniLM): alike in meaning, from -1 to 1.")
    ratio: float = Field(description="Of the letters in order: 1 is the same text.")
    quick_ratio: float = Field(description="Of the letters in any order: 1 has the same ones.")


Asked = TypeVar("Asked", bound=BaseModel)


@dataclass(frozen=True)
class Tool(Generic[Asked]):
    """One tool: what it takes, what it gives, and what does it."""

    name: str
    description: str
    takes: type[Asked]
    gives: type[BaseModel]
    run: Callable[[Asked], Awaitable[tuple[str, BaseModel]]]
    """→ the text for the reader, and the same in fields."""

    def listed(self) -> types.Tool:
        """As a client is told of it."""
        return types.Tool(
            name=self.name,
            description=self.description,
            input_schema=self.takes.model_json_schema(),
            output_schema=self.gives.model_json_schema(mode="serialization"),
            annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )

    async def call(self, arguments: Mapping[str, Any]) -> types.CallToolResult:
        """What is wrong with a call is told to the model, which may mend it."""
        try:
            text, fields = await self.run(self.takes.model_validate(arguments))
        except ValidationError as error:
            return failed(validation(error.errors()))
        except CaptionerError as error:
            return failed(one_line(error))
        return types.CallToolResult(content=[as_text(text)], structured_content=fields.model_dump(mode="json"))


def failed(message: str) -> types.CallToolResult:
    """A call without an answer."""
    return types.CallToolResult(content=[as_text(message)], is_error=True)


def as_text(text: str) -> types.TextContent:
    """A text for the reader; half a surrogate pair cannot be sent."""
    return types.TextContent(type="text", text=text.encode("utf-8", "replace").decode())


# --- the tools -------------------------------------------------------------------------------------------------------


class Tools:
    """The tools of one engine."""

    def __init__(self, engine: Engine, settings: Settings, any_path: bool = False) -> None:
        """any_path: they serve the user of this machine, who may name any file; else those below settings.root."""
        self.engine = engine
        self.settings = settings
        self.any_path = any_path
        models = ", ".join(printable(name) for name in engine.models)
        picture = "Name the picture by one of path, address and base64."
        self.tools: dict[str, Tool[Any]] = {
            tool.name: tool
            for tool in (
                Tool(
                    "caption_image",
                    f"Write the prompt that could have made a picture, or describe it. {picture} Models: {models}.",
                    CaptionImage,
                    Caption,
                    self.caption_image,
                ),
                Tool(
                    "read_prompt",
                    "Read the prompt and the settings that the program which drew a picture (A1111, ComfyUI, InvokeAI "
                    f"…) wrote into its file. {picture}",
                    OfPicture,
                    Carried,
                    self.read_prompt,
                ),
                Tool(
                    "compare_prompts",
                    "Tell how near two prompts are, in meaning and letter by letter.",
                    ComparePrompts,
                    Comparison,
                    self.compare_prompts,
                ),
            )
        }

    def server(self) -> Server[Any]:
        """All of them as a server of the protocol."""

        async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
            return types.ListToolsResult(tools=[tool.listed() for tool in self.tools.values()])

        async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
            tool = self.tools.get(params.name)
            if tool is None:
                return failed(f"There is no tool of that name, only {', '.join(self.tools)}.")
            return await tool.call(params.arguments or {})

        return Server(
            "captioner",
            version=__version__,
            instructions=INSTRUCTIONS,
            on_list_tools=list_tools,
            on_call_tool=call_tool,
        )

    async def caption_image(self, asked: CaptionImage) -> tuple[str, Caption]:
        """What a model says of a picture."""
        settings: dict[str, Any] = {
            name: value for name in ("style", "num_candidates") if (value := getattr(asked, name))
        }
        if asked.instruction:
            settings["instruction"] = literal(asked.instruction)
        ask = self.engine.ask(asked.model or None, **settings)
        (row,) = await self._answers(self.engine.submit_all([await self.picture(asked)], ask))
        texts = [candidate["text"] for candidate in row["candidates"]]
        return row["text"], Caption(text=row["text"], model=row["model"], score=row["score"], candidates=texts)

    async def read_prompt(self, asked: OfPicture) -> tuple[str, Carried]:
        """What a picture carries."""
        picture = await self.picture(asked)
        parameters: Parameters | None = await run_in_threadpool(read_parameters, picture.data, picture.title)
        if parameters is None:
            return "The picture carries no generation parameters.", Carried(parameters=None)
        return parameters.to_text(), Carried(parameters=parameters.to_dict())

    async def compare_prompts(self, asked: ComparePrompts) -> tuple[str, Comparison]:
        """How near two texts are."""
        (vectors,) = await self._answers(self.engine.embed_texts([asked.first, asked.second]))
        (figures,) = likeness([asked.first], [asked.second], np.float32(vectors))
        comparison = Comparison(**figures)
        words = (f"{name.replace('_', ' ')} {value:.3f}" for name, value in comparison.model_dump().items())
        return ", ".join(words), comparison

    async def _answers(self, futures: list[Any]) -> list[Any]:
        try:
            answers = await asyncio.wait_for(self.engine.answers(futures), self.engine.timeout)
        except asyncio.TimeoutError:  # one class with TimeoutError since Python 3.11
            raise Late from None
        for answer in answers:
            if isinstance(answer, CaptionerError):
                raise answer
        return answers

    async def picture(self, asked: OfPicture) -> Picture:
        """The picture that a call names."""
        ways = {name: value for name in OfPicture.model_fields if (value := getattr(asked, name))}
        if len(ways) != 1:
            raise BadInput("Name the picture by one of path, address and base64.")
        ((way, named),) = ways.items()
        if way == "path":
            return await run_in_threadpool(self.file, named)
        if is_url(named) != (way == "address"):
            raise BadInput(f"The {way} is none: an address begins with http:// or https://, and base64 does not.")
        return await inputs.picture(named, self.settings)

    def file(self, path: str) -> Picture:
        """A file that may be read."""
        file = path_of(path) if self.any_path else below(self.settings.root, path)
        with open_file(file, printable(path)) as stream:
            return Picture(stream.read(), path, file)


def below(root: Path | None, path: str) -> Path:
    """A file in a folder or in those below it, wherever links lead. What lies elsewhere is as if it were not there."""
    if root is None:
        raise BadInput("Files are not read here: send the picture itself, or start the server with a root folder.")
    file = inputs.inside(root, path)
    if file is None or not os.path.exists(file):  # pathlib's raises an error of a name that is too long
        raise BadImage(f"There is no file {printable(path)[:200]} in the server's folder.")
    return file
