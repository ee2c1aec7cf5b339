"""Models of the Hugging Face Hub as folders: from the local cache, or fetched once, after one line that says so."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from captioner.errors import BadCheckpoint, MissingExtra, MissingModel, absent
from captioner.files.json import read_object
from captioner.files.names import nearest_existing
from captioner.files.weights import ENDINGS, NAMES, TAGGER, is_tagger

HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
PARTS = ("qformer_tokenizer/",)
"""Folders of a repository that belong to a model: InstructBLIP's second tokenizer."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
"""What a disk says that takes no more."""
READ = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", "README.md")
"""What is fetched beside weights. Code is run only where the user trusts it, and must be there then."""


def cached_folder(identifier: str) -> Path | None:
    """The newest complete snapshot of a Hub model in the local cache, without asking the network."""
    from huggingface_hub import constants

    if not (Path(constants.HF_HUB_CACHE) / f"models--{identifier.replace('/', '--')}").is_dir():
        return None  # what looks closer imports what fetches: 7 MB
    from huggingface_hub import try_to_load_from_cache

    for weights in (TAGGER[0], *NAMES):
        file = try_to_load_from_cache(identifier, weights, cache_dir=constants.HF_HUB_CACHE)
        if isinstance(file, str) and _is_complete(Path(file)):
            return Path(file).parent
    return None


def _is_complete(weights: Path) -> bool:
    """The parts that an index names arrive after it, and may not have; so does the list of a tagger's tags."""
    if weights.name == TAGGER[0]:
        return is_tagger(weights.parent)
    if not weights.name.endswith(".index.json"):
        return True
    try:
        parts = read_object(weights).get("weight_map", {})
    except BadCheckpoint:
        return False
    return isinstance(parts, dict) and all((weights.parent / str(part)).exists() for part in set(parts.values()))


def hub_folder(identifier: str, modules: bool = False) -> Path:
    """A Hub model's folder; fetched, after one line that says what and how large, if it is not in the cache.

    modules: with the folders of its parts, as sentence-transformers writes them (1_Pooling …).
    """
    if not HUB_ID.fullmatch(identifier):
        raise MissingModel(f"There is no folder {identifier!r}, and a Hub id is of the form ORG/NAME.")
    if (folder := cached_folder(identifier)) is not None:
        return folder
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HTTPError

    if constants.HF_HUB_OFFLINE:
        raise MissingModel(
            f"There is no folder {identifier}; as a model of the Hub it is not in the local cache, and HF_HUB_OFFLINE "
            "is set. Unset it, or name a folder that is there."
        )
    try:
        siblings = HfApi().model_info(identifier, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in siblings}
        wanted = files_to_fetch(list(sizes), modules)
        _check_weights(identifier, wanted, list(sizes))
        size = sum(sizes[name] for name in wanted)
        _check_room(identifier, size)
        print(f"Fetching {identifier} from the Hugging Face Hub ({size / 1e6:,.0f} MB) …", file=sys.stderr)
        return Path(snapshot_download(identifier, allow_patterns=wanted, cache_dir=constants.HF_HUB_CACHE))
    except (HTTPError, OSError) as error:
        _explain(identifier, error)


def files_to_fetch(files: list[str], modules: bool = False) -> list[str]:
    """Configuration, tokenizer and one form of the weights of each folder: safetensors where there are any. Of a tagger
    the two files that are read."""
    if set(TAGGER) <= set(files):
        return list(TAGGER)
    top = [f for f in files if "/" not in f or f.startswith(PARTS) or (modules and re.match(r"\d+_[^/]+/[^/]+$", f))]
    safe = {os.path.dirname(f) for f in top if f.endswith(".safetensors")}
    weights = [f for f in top if f.endswith(".safetensors") or (f.endswith(".bin") and os.path.dirname(f) not in safe)]
    # The same twice, in a form of its authors.
    if any(f.startswith("model") and f.endswith(".safetensors") for f in weights):
        weights = [f for f in weights if not f.startswith("consolidated")]
    return weights + [f for f in top if f.endswith(READ)]


def _check_weights(identifier: str, wanted: list[str], files: list[str]) -> None:
    if not any(name.endswith((*ENDINGS, *TAGGER)) for name in wanted):
        others = ", ".join(sorted(files)[:5]) or "nothing"
        raise MissingModel(
            f"{identifier} holds no weights in a form that is read here (safetensors, or PyTorch's .bin), "
            f"but {others}. Name another model."
        )
    if wanted == list(TAGGER) and (missing := absent("tagger")):
        raise MissingExtra(f'{identifier} needs {missing[0]}, which is not installed: pip install "captioner[tagger]"')


def _check_room(identifier: str, size: int) -> None:
    """Refuse what the disk cannot hold before an hour of fetching."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    blobs = cache / f"models--{identifier.replace('/', '--')}" / "blobs"
    begun = sum(file.stat().st_size for file in blobs.iterdir()) if blobs.is_dir() else 0
    free = shutil.disk_usage(nearest_existing(cache)).free
    if size - begun > free:
        raise MissingModel(
            f"{identifier} takes {size / 1e6:,.0f} MB, and {cache} has room for {free / 1e6:,.0f} MB. "
            "Free some, or set HF_HOME to a folder of a larger disk."
        )


def _explain(identifier: str, error: Exception) -> NoReturn:
    """What is in the way, and what to do about it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    page = f"{constants.ENDPOINT}/{identifier}"
    if isinstance(error, GatedRepoError):
        message = f"{identifier} is gated: accept its terms on {page}, then log in with `hf auth login`."
    elif isinstance(error, RepositoryNotFoundError):
        message = (
            f"There is no model {identifier!r} on the Hugging Face Hub, or it is private: check the name, or log in "
            "with `hf auth login`."
        )
    elif isinstance(error, HfHubHTTPError) and error.response is not None:
        message = f"The Hugging Face Hub refuses {identifier} (status {error.response.status_code}). Try again later."
    elif isinstance(error, OSError) and error.errno in UNWRITABLE:
        message = f"{identifier} cannot be kept in {constants.HF_HUB_CACHE} ({error.strerror}). Set HF_HOME elsewhere."
    else:
        message = (
            f"There is no folder {identifier}; as a model of the Hub it is not in the local cache, and the Hub cannot "
            f"be reached. Check the network, or fetch it elsewhere (hf download {identifier}) and name its folder."
        )
    raise MissingModel(message) from error
