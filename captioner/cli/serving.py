"""Verbs that stay: serve, and mcp."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from captioner.cli.options import Quiet, grouped, panel_option
from captioner.contracts import PLAIN_REQUEST, LoadOptions
from captioner.errors import BadInput, MissingExtra, absent
from captioner.files.names import path_of

_reached = panel_option("Who may ask")
_limits = panel_option("Limits")

Models = Annotated[
    str | None,
    typer.Option("--models", "-m", help="Models that may be asked, comma-separated; the first is the default."),
]


@grouped
def serve(
    options: LoadOptions,
    folder: Annotated[
        str | None, typer.Argument(help="Open Review on this folder of pictures; it may be written to.")
    ] = None,
    models: Models = None,
    index: Annotated[str | None, typer.Option("--index", "-i", help="An index folder, for similar pictures.")] = None,
    root: Annotated[
        str | None, typer.Option(help="The folder that the page may look into, where it is not FOLDER.")
    ] = None,
    tags: Annotated[
        str | None,
        typer.Option(
            help="Tags that Review offers while a text is typed, beside those of FOLDER: one a line, or a tagger's or "
            "another editor's .csv."
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The page beside the API.")] = True,
    host: Annotated[
        str, _reached("The address to listen on; 0.0.0.0 is every one of this machine's.", show_default=True)
    ] = "127.0.0.1",
    port: Annotated[int | None, _reached("The port (default: 7860, or the next free one).", min=0, max=65535)] = None,
    api_key: Annotated[
        str | None,
        _reached(
            "Who asks must know it: as a bearer's token, or as the password of any user.", envvar="CAPTIONER_SERVE_KEY"
        ),
    ] = None,
    no_auth: Annotated[
        bool, _reached("Another host without a key: everybody who can reach it may ask.", "--no-auth")
    ] = False,
    allow_urls: Annotated[
        bool, _reached("Fetch pictures from public addresses that requests name.", "--allow-urls")
    ] = False,
    queue: Annotated[
        int, _limits("Pictures that may wait; who comes then is told to come again.", min=1, show_default=True)
    ] = 256,
    timeout: Annotated[float, _limits("Seconds for a whole request.", min=0.1, show_default=True)] = 120.0,
    max_mb: Annotated[float, _limits("Megabytes of one request.", min=0.001, max=2000, show_default=True)] = 20.0,
    quiet: Quiet = False,
) -> None:
    """Keep models loaded and answer over HTTP: our own API, those that existing clients speak, and a page.

    Only this machine can connect unless --host says otherwise. The API is described at /docs. --device
    cuda:0,cuda:1 lets several devices answer by turns.

    captioner serve

    captioner serve photos

    captioner serve photos --tags danbooru.csv

    captioner serve --models blip-large,mini --no-page --port 8000

    captioner serve --host 0.0.0.0 --api-key "$(openssl rand -hex 24)"
    """
    _need_extra()
    names = _names(models)
    from captioner import pipeline
    from captioner.serving.engine import Engine
    from captioner.web import server
    from captioner.web.settings import Settings

    if folder is not None and root is not None and Path(folder).resolve() != Path(root).resolve():
        raise BadInput("FOLDER is the root: give it, or --root, not both.")
    named = folder if folder is not None else root
    host = _host(host)
    key = None if api_key is None else api_key.strip()  # a secret in a file ends with a line break
    settings = Settings(host, key, no_auth, allow_urls, int(max_mb * 1e6), _folder(named), page, _tags(tags, named))
    for model in names:
        pipeline.check(model, options, PLAIN_REQUEST, speaks=False)  # the default is loaded now, others when asked
    engine = Engine(names, options, index=_index(index), queue=queue, timeout=timeout)
    listener = server.listening(host, port)
    address = server.address_of(listener)

    def ready() -> None:
        if not quiet:
            where = f"{address}/#review" if folder is not None else address
            typer.echo(f"captioner: {where} answers with {', '.join(engine.models)}; Ctrl+C stops it", err=True)
            if not settings.is_local and key is None:
                typer.echo(f"captioner: there is no key: everybody who can reach {host} may ask", err=True)

    server.run(engine, settings, listener, ready)


def _host(address: str) -> str:
    """What is listened on; brackets may stand around an address of IPv6, as in a browser."""
    if not address.strip() or re.search(r"//|^[^:]*:\d+$|\]:\d+$", address):
        raise BadInput(f"--host takes an address alone, not {address!r}: the port is told by --port.")
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def _folder(name: str | None) -> Path | None:
    """The root, which must be there."""
    if name is None:
        return None
    path = path_of(name)
    if not path.is_dir():
        raise BadInput(f"There is no folder {name!r}.")
    return path.resolve()


def _tags(name: str | None, folder: str | None) -> tuple[str, ...]:
    """Those of a list."""
    if name is None:
        return ()
    if folder is None:
        raise BadInput("--tags are offered in Review: name a FOLDER, too.")
    from captioner.text.terms import read_tags

    return tuple(read_tags(path_of(name)))


def _index(name: str | None) -> Path | None:
    """The folder of an index, which must be one."""
    if name is None:
        return None
    from captioner import zoo

    folder = path_of(name)
    zoo.check_index(folder)
    return folder


def _names(models: str | None) -> list[str]:
    """Names between commas."""
    names = [name.strip() for name in (models or "").split(",") if name.strip()]
    if models is not None and not names:
        raise BadInput("--models names no model.")
    return names


def _need_extra(verb: str = "serve") -> None:
    if missing := absent("web"):
        raise MissingExtra(f'captioner {verb} needs {", ".join(missing)}: pip install "captioner[web]"')


@grouped
def mcp(options: LoadOptions, models: Models = None) -> None:
    """Offer tools about pictures to a language model: the Model Context Protocol on standard input and output.

    The tools are caption_image, read_prompt and compare_prompts; any file of yours may be named. The program that
    starts this (Claude Desktop, an editor …) is told of it in its settings: the command is captioner, the argument mcp.

    captioner mcp

    captioner mcp --models blip-large,mini
    """
    _need_extra("mcp")
    names = _names(models)
    from captioner.serving.engine import Engine
    from captioner.web import stdio

    stdio.run(Engine(names, options, timeout=stdio.TIMEOUT))
