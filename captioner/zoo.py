"""Names → how to load: the only list of models.

A model is named by its zoo name (`blip`), by a folder or file (`runs/blip`, `ensemble.json`), or by its Hub id
(`Salesforce/blip-image-captioning-large`; `hub:ORG/NAME` runs it through transformers' own `generate`), or by the
address of a server (`openai:http://localhost:1234/v1#qwen3-vl`).
`resolve` finds the weights and the file under captioner/models/ that loads them. The network is touched only for a Hub
id that is not in the cache.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import BadCheckpoint, BadInput, MissingModel
from captioner.files.hub import HUB_ID, cached_folder, hub_folder
from captioner.files.json import read_object
from captioner.files.names import is_url, path_of
from captioner.files.weights import is_tagger, weights_in

BUNDLED = Path(__file__).parent / "bundled"


@dataclass(frozen=True)
class Entry:
    """One model of the zoo."""

    name: str
    kind: str
    """captioner (speaks) or embedder (unit vectors only)."""
    module: str
    """The file under captioner/models/ whose `load(folder, options)` makes it."""
    weights: str | None
    """Hub id; "bundled" for what ships with the package; None: the user names a folder."""
    purpose: str


CLIP = "openai/clip-vit-large-patch14"
"""What the interrogator ranks by; BLIP writes its caption."""

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry("mini", "captioner", "prefix.mini", "bundled", "small, offline, instant"),
        Entry("blip", "captioner", "blip", "Salesforce/blip-image-captioning-base", "plain captions; fine-tunes best"),
        Entry("blip-large", "captioner", "blip", "Salesforce/blip-image-captioning-large", "finer captions, slower"),
        Entry("clip-prefix", "captioner", "prefix.clip_prefix", None, "CLIP prefix → GPT-2; ClipCap, converted"),
        Entry("resnet-lstm", "captioner", "lstm.attention_lstm", None, "ResNet-50 → attention → LSTM: the classic"),
        Entry("resnet-lstm-gpt2", "captioner", "lstm.lstm_gpt2", None, "ResNet-50 → LSTM → GPT-2"),
        Entry("ofa", "captioner", "ofa", "OFA-Sys/ofa-base", "answers a question about the picture"),
        Entry("interrogator", "captioner", "interrogator", CLIP, "caption + artists, mediums, flavours ranked by CLIP"),
        Entry("wd-tagger", "captioner", "tagger", "SmilingWolf/wd-swinv2-tagger-v3", "booru tags of drawn pictures"),
        Entry("vit", "embedder", "direct", None, "ViT-B/16 → the embedding, no text"),
        Entry("vit-large", "embedder", "direct", None, "ViT-L/16 → the embedding, no text"),
        Entry("clip", "embedder", "direct", None, "CLIP's image tower → the embedding, no text"),
        Entry("resnet50", "embedder", "direct", None, "ResNet-50 → the embedding, no text"),
        Entry("resnet152", "embedder", "direct", None, "ResNet-152 → the embedding, no text"),
        Entry("efficientnet", "embedder", "direct", None, "EfficientNet-Lite2 → the embedding, no text; small"),
        Entry("knn", "embedder", "knn", None, "mean of the nearest pictures' prompt embeddings"),
        Entry("ensemble", "embedder", "ensemble", None, "weighted mean of any of these"),
    )
}

ARCHITECTURES: dict[str, str] = {
    "blip": "blip",
    "clip-prefix": "prefix.clip_prefix",
    "resnet-lstm": "lstm.attention_lstm",
    "resnet-lstm-gpt2": "lstm.lstm_gpt2",
    "ofa": "ofa",
    "direct": "direct",
    "knn": "knn",
    "ensemble": "ensemble",
}
"""`model_type` of a config.json (`kind` of an index.json or ensemble file) → file under captioner/models/."""

EMBEDDERS = frozenset({"direct", "knn", "ensemble"})
"""Architectures that give unit vectors and no text."""
COMPOSED = frozenset({"ensemble", "interrogator"})
"""Architectures made of other models."""
UNSEARCHED = frozenset({"tagger"})
"""Architectures that write without a search, so that of its settings only the forbidden words mean something."""
FP32_ALONE = frozenset({"tagger"})
"""Architectures that compute in fp32 on every device."""
LOADS_WITH: dict[str, frozenset[str]] = {
    "hub": frozenset({"load_in", "trust_remote_code"}),
    "interrogator": frozenset({"caption_model", "clip_model"}),
}
"""The fields of `LoadOptions` that these architectures alone have a use for; all have one for the others."""
OF_A_CAPTION = frozenset({"prompt", "question", "instruction"})
"""The fields of a `Request` that the interrogator passes on to the model that writes its caption."""
CHATS = frozenset({"instruction", "style"})
_ASKED_WITH: dict[str, frozenset[str]] = {
    "prefix.mini": frozenset({"prompt", "quality"}),
    "prefix.clip_prefix": frozenset({"prompt", "quality"}),
    "ofa": frozenset({"prompt", "question"}),
    "hub": CHATS | {"prompt"},
    "openai": CHATS,
    "interrogator": frozenset({"mode", "terms"}) | OF_A_CAPTION,
    "tagger": frozenset({"threshold", "character_threshold", "rating"}),
}
SERVER = "openai:"
"""Before the address of a server that speaks OpenAI's chat completions."""


SIDES = {"prefix.mini": 260, "blip": 384}
"""Pixels a side that these architectures read; the others may want all that a picture has."""


MADE_BY = {
    "knn": "captioner index build",
    "ensemble": "captioner ensemble fit",
    "direct": "python -m training.direct",
    "prefix.clip_prefix": "python -m training.clip_prefix",
    "lstm.attention_lstm": "python -m training.resnet_lstm",
    "lstm.lstm_gpt2": "python -m training.resnet_lstm --gpt2",
}
"""The command that makes weights, where there are none to fetch."""


@dataclass(frozen=True)
class Resolved:
    """A model found: what to call it, which file loads it, where its weights lie (None: it has none of its own)."""

    name: str
    module: str
    folder: Path | None
    address: str | None = None
    """"ADDRESS#MODEL" of a server that runs it."""

    @property
    def source(self) -> Path | str | None:
        """What its file loads it from."""
        return self.folder if self.address is None else self.address

    @property
    def bytes_of_weights(self) -> int:
        """How much is read from files when it is loaded, from those of an adapter's base too."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        of_base = base_of(self.folder).bytes_of_weights if is_adapter(self.folder) else 0
        return of_base + sum(file.stat().st_size for file in weights_in(self.folder))

    @property
    def side(self) -> int | None:
        """Pixels a side that it reads of a picture (see `open_image`); None where its kind does not tell."""
        return SIDES.get(self.module)

    @property
    def speaks(self) -> bool:
        """False for what gives unit vectors only."""
        return self.module not in EMBEDDERS


def asked_with(module: str) -> frozenset[str]:
    """The fields of a `Request` beside its decoding that an architecture may have a use for, whatever its weights."""
    return _ASKED_WITH.get(module, frozenset({"prompt"}))


def users_of(settings: Iterable[str]) -> list[str]:
    """The models that alone have a use for all of these, as they are named; none where most have."""
    called = {"hub:ORG/NAME": "hub", f"{SERVER}ADDRESS#NAME": "openai"} | {e.name: e.module for e in ENTRIES.values()}
    used = {module: LOADS_WITH.get(module, frozenset()) | asked for module, asked in _ASKED_WITH.items()}
    return [name for name, module in called.items() if used.get(module, frozenset()).issuperset(settings)]


def at_hand(name: str) -> Resolved | None:
    """As `resolve`, of what is known here without the network: None for a Hub id whose kind nothing here tells."""
    entry = ENTRIES.get(name)
    if entry is not None and entry.weights not in (None, "bundled"):
        return Resolved(name, entry.module, _ready_folder(entry))
    identifier = _hub_id(name.removeprefix("hub:"))
    is_folder = name in ENTRIES or os.path.exists(os.path.expanduser(identifier))
    if not is_folder and "/" in identifier and HUB_ID.fullmatch(identifier) and cached_folder(identifier) is None:
        return Resolved(name, "hub", None) if name.startswith("hub:") else None
    return resolve(name)


HUB_ADDRESS = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+).*")


def resolve(name: str) -> Resolved:
    """Find a model by zoo name, path, Hub id or the address of its page on the Hub."""
    if name.startswith("hub:"):
        identifier = _hub_id(name.removeprefix("hub:"))
        if not identifier:
            raise MissingModel("hub: names no model. Give its Hub id, hub:ORG/NAME, or a folder, hub:FOLDER.")
        folder = weights_folder(identifier)
        return Resolved(name, "tagger" if is_tagger(folder) else "hub", folder)
    if name.startswith(SERVER):
        return Resolved(name, "openai", None, name.removeprefix(SERVER))
    if name in ENTRIES:
        return _from_entry(ENTRIES[name])
    path = path_of(name)
    if name and os.path.exists(path):  # which says no, too, of what can be no path
        return Resolved(name, _module_of(path), path)
    identifier = _hub_id(name)
    if "/" in identifier and HUB_ID.fullmatch(identifier):
        folder = hub_folder(identifier)
        return Resolved(name, _module_of(folder), folder)
    if is_url(name):
        raise MissingModel(f"{name!r} is no model's page. Of a server that runs one, say {SERVER}{name}#MODEL.")
    near = difflib.get_close_matches(name.lower(), ENTRIES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise MissingModel(f"No model {name!r}: {hint}`captioner models` lists the names; a folder or a Hub id works too.")


def _hub_id(name: str) -> str:
    """The id in the address of a model's page; anything else as it is."""
    page = HUB_ADDRESS.fullmatch(name)
    return page[1] if page else name


def absolute(name: str) -> str:
    """A model's name for whoever stands in another folder: a path that is there is made absolute."""
    prefix = "hub:" if name.startswith("hub:") else ""
    path = os.path.expanduser(name.removeprefix(prefix))
    return prefix + os.path.abspath(path) if name not in ENTRIES and os.path.exists(path) else name


def default() -> str:
    """What `captioner generate` uses when no model is named: the best that is already on this machine."""
    for name in ("blip-large", "blip"):
        if _ready_folder(ENTRIES[name]) is not None:
            return name
    if (BUNDLED / "mini").is_dir():
        return "mini"
    raise MissingModel(
        "No model is on this machine yet. Name one to fetch, e.g. `--model blip`, or a folder with a checkpoint."
    )


@dataclass(frozen=True)
class Listed:
    """A row of `captioner models`."""

    name: str
    kind: str
    weights: str
    where: str | None
    """The folder of the weights, where they are on this machine."""
    bytes: int | None
    purpose: str


def listing() -> list[Listed]:
    """Every model, for `captioner models`."""
    rows = []
    for entry in ENTRIES.values():
        folder = _ready_folder(entry)
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder else None
        where = str(folder) if folder else None
        rows.append(Listed(entry.name, entry.kind, entry.weights or "a folder of yours", where, size, entry.purpose))
    return rows


def check_index(folder: Path) -> None:
    """Refuse a folder that is no index of pictures."""
    if not (folder / "index.json").is_file():
        raise BadInput(f"{folder} holds no index: make one with captioner index build.")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds what LoRA has learnt, and no whole model."""
    return (folder / "adapter_config.json").is_file()


def base_of(adapter: Path) -> Resolved:
    """The whole model that a LoRA adapter stands on, as its adapter_config.json names it."""
    name = read_object(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise BadCheckpoint(f"{adapter}/adapter_config.json does not name its base model (base_model_name_or_path).")
    # A path as it stands in the file, or seen from the adapter's folder, or from that of the run it is a checkpoint of.
    candidates = (folder / name for folder in (adapter, adapter.parent))
    base_name = str(next((path for path in candidates if os.path.isdir(path)), name))
    if name not in ENTRIES and not os.path.exists(base_name) and not HUB_ID.fullmatch(name):
        raise MissingModel(f"The adapter {adapter} needs its base {name}, which is not there. Bring it back.")
    try:
        base = _from_entry(ENTRIES[base_name]) if base_name in ENTRIES else None
        folder = base.folder if base else weights_folder(os.path.expanduser(base_name))
    except MissingModel as error:
        raise MissingModel(f"The adapter {adapter} needs its base: {error}") from error
    if folder is None or is_adapter(folder):
        raise BadCheckpoint(f"{adapter} names {name!r} as its base, which is no whole model. Name one that is.")
    return base or Resolved(base_name, _module_of(folder), folder)


def weights_folder(name: str | Path) -> Path:
    """A folder as it is, or the folder of a Hub id."""
    return Path(name) if os.path.isdir(name) else hub_folder(_hub_id(str(name)))


def _from_entry(entry: Entry) -> Resolved:
    if entry.module == "interrogator":
        return Resolved(entry.name, entry.module, None)  # its parts are models of their own
    if entry.weights is None:
        command = MADE_BY[entry.module]
        raise MissingModel(f"{entry.name!r} has no ready-made weights: make some (`{command} --help`) and name them.")
    folder = _ready_folder(entry)
    if folder is None and entry.weights == "bundled":
        raise MissingModel(f"{entry.name!r} is not part of this installation. Reinstall captioner.")
    return Resolved(entry.name, entry.module, folder or hub_folder(entry.weights))


def _ready_folder(entry: Entry) -> Path | None:
    """Where the weights lie on this machine, if they do."""
    if entry.weights is None:
        return None
    if entry.weights == "bundled":
        folder = BUNDLED / entry.name
        return folder if folder.is_dir() else None
    return cached_folder(entry.weights)


def _module_of(path: Path) -> str:
    """Which file under captioner/models/ loads this folder or file."""
    if not path.is_dir():
        return _module_of_file(path)
    if (path / "index.json").exists():
        return ARCHITECTURES["knn"]
    if is_tagger(path):
        return "tagger"
    if is_adapter(path):
        return base_of(path).module
    if not (path / "config.json").exists():
        inside = ", ".join(sorted(os.listdir(path))[:5]) or "nothing"
        raise BadCheckpoint(f"{path} is no checkpoint: it has no config.json (it holds {inside}).")
    kind = read_object(path / "config.json").get("model_type")
    if not isinstance(kind, str):
        raise BadCheckpoint(f"{path}/config.json does not name the kind of model that it describes (model_type).")
    # A type that is not ours is a foreign captioner: transformers may know it.
    return ARCHITECTURES.get(kind, "hub")


def _module_of_file(path: Path) -> str:
    """The only model that is a file is an ensemble."""
    remedy = "name a checkpoint folder, an index folder or an ensemble .json."
    if path.suffix != ".json":
        if any((path.parent / name).exists() for name in ("config.json", "adapter_config.json", "index.json")):
            raise BadCheckpoint(f"{path} is a part of a model: name its folder, {path.parent}.")
        raise BadCheckpoint(f"{path} is no model: {remedy}")
    if read_object(path).get("kind") != "ensemble":
        raise BadCheckpoint(f"{path} is no model: {remedy}")
    return ARCHITECTURES["ensemble"]
