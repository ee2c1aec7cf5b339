"""Checkpoints, ensembles and indexes as a stranger may have made them, each broken in one way: one sentence every time.

No code of theirs runs, nothing waits for ever, and nothing large is built on their word.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import captioner
from captioner.contracts import LoadOptions, Request
from captioner.errors import CaptionerError
from tests.models.knn.test_knn import random_units, write_index

CPU = LoadOptions(device="cpu", precision="fp32")
DEEP = "[" * 100_000
Break = Callable[[Path], object]
"""What is done to a good folder."""


def answer(name: Path | str) -> object:
    """A model loaded, and asked about one picture."""
    model = captioner.load(str(name), CPU)
    picture = Image.effect_noise((40, 30), 90).convert("RGB")
    return model.generate([picture]) if model.speaks else model.embed([picture])


def sentence(name: Path | str) -> str:
    """What a user is told."""
    with pytest.raises(CaptionerError) as told:
        answer(name)
    said = str(told.value)
    assert "\n" not in said.strip()
    assert len(said) < 600
    return said


@pytest.fixture
def copied(tiny_checkpoint, tmp_path) -> Callable[[str], Path]:
    """A tiny checkpoint of a family, to be broken. Its files are links: who writes one takes the link away first."""

    def copy(family: str) -> Path:
        return shutil.copytree(tiny_checkpoint(family), tmp_path / family, copy_function=os.link)

    return copy


def write(name: str, content: str | bytes) -> Break:
    def broken(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return broken


def drop(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def cut(name: str, share: float = 0.5) -> Break:
    """A file that was not copied to its end."""

    def broken(folder: Path) -> None:
        content = (folder / name).read_bytes()
        write(name, content[: int(len(content) * share)])(folder)

    return broken


def said(file: str = "config.json", **changes: object) -> Break:
    """Other entries in a JSON file; a double underscore leads into an object within."""

    def broken(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        for key, value in changes.items():
            *outer, last = key.split("__")
            inner = content
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = value
        write(file, json.dumps(content))(folder)

    return broken


def weights(number: float, part: str = "") -> Break:
    """All weights, or those with this in their name, filled with one number."""

    def broken(folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if part in name and tensor.is_floating_point():
                tensor.fill_(number)
        file.unlink()
        save_file(tensors, file, {"format": "pt"})

    return broken


def index(content: object) -> Break:
    """Weights in several files, as this index would have it."""

    def broken(folder: Path) -> None:
        os.rename(folder / "model.safetensors", folder / "part.safetensors")
        write("model.safetensors.index.json", json.dumps(content))(folder)

    return broken


def outside(folder: Path) -> None:
    """An index that leads out of the folder, to a file that would be read."""
    os.link(folder / "model.safetensors", folder.parent / "stolen.safetensors")
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "../stolen.safetensors")
    index({"metadata": {}, "weight_map": names})(folder)


def pipe(name: str) -> Break:
    def broken(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return broken


def link(name: str, target: str) -> Break:
    def broken(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return broken


class Planted:
    """A pickle that would leave a mark."""

    def __reduce__(self):
        return os.mkdir, (str(Path(os.environ["CAPTIONER_CACHE"]) / "planted"),)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Planted()}, folder / "pytorch_model.bin")


CONFIGS: list[tuple[str, Break]] = [
    ("blip", said(model_type=["blip"])),
    ("blip", said(model_type=5)),
    ("blip", said(model_type="bert")),
    ("blip", write("config.json", DEEP)),
    ("blip", write("config.json", b"\xff\xfe{")),
    ("blip", write("config.json", "[1]")),
    ("blip", pipe("config.json")),
    ("blip", link("config.json", "/dev/zero")),
    ("blip", link("config.json", "config.json")),
    ("blip", said(text_config__num_hidden_layers=10**8)),
    ("blip", said(vision_config__num_hidden_layers=10**8)),
    ("blip", said(vision_config__hidden_size=3 * 10**5)),
    ("blip", said(text_config__vocab_size=10**9)),
    ("blip", said(text_config__num_attention_heads=0)),
    ("blip", said(vision_config__num_attention_heads=0)),
    ("blip", said(vision_config__num_attention_heads=5)),
    ("blip", said(text_config__hidden_size=-32)),
    ("blip", said(text_config__hidden_act="nothing")),
    ("blip", said(text_config__bos_token_id=10**6)),
    ("blip", said(text_config__bos_token_id=-5)),
    ("blip", said(text_config__sep_token_id=10**6)),
    ("blip", said(text_config__max_position_embeddings="many")),
    ("blip", said(vision_config__image_size=48)),
    ("blip", said(vision_config=5)),
    ("clip-prefix", said(gpt2__n_layer=10**8)),
    ("clip-prefix", said(gpt2__n_embd=10**6)),
    ("clip-prefix", said(gpt2__n_head=0)),
    ("clip-prefix", said(gpt2__n_head=5)),
    ("clip-prefix", said(gpt2="small")),
    ("clip-prefix", said(mapper_heads=0)),
    ("clip-prefix", said(mapper_heads=5)),
    ("clip-prefix", said(mapper_layers=10**8)),
    ("clip-prefix", said(mapper="transformers")),
    ("clip-prefix", said(prefix_length=0)),
    ("clip-prefix", said(eos_ids=5)),
    ("clip-prefix", said(eos_ids=[10**6])),
    ("clip-prefix", said(eos_ids=["."])),
    ("clip-prefix", said(pad_id=10**6)),
    ("clip-prefix", said(backbone=["clip"])),
    ("clip-prefix", said(backbone__name="none")),
    ("clip-prefix", said(backbone__settings__num_hidden_layers=10**8)),
    ("clip-prefix", said(backbone__preprocess__size=10**7)),
    ("clip-prefix", said(backbone__preprocess__size="big")),
    ("clip-prefix", said(backbone__preprocess__std=[0, 0, 0])),
    ("clip-prefix", said(backbone__preprocess__mean=["a", "b", "c"])),
    ("clip-prefix", said(backbone__preprocess__resample="by magic")),
    ("direct", said(head="none")),
    ("direct", said(head=["linear"])),
    ("direct", said(embedding_size=10**9)),
    ("direct", said(embedding_size=-1)),
    ("direct", said(embedder=5)),
    ("resnet-lstm", said(hidden_size=10**7)),
    ("resnet-lstm", said(unknown_token_id=10**7)),
    ("resnet-lstm-gpt2", said(lstm_layers=10**8)),
    ("resnet-lstm-gpt2", said(gpt2__n_head=0)),
    ("ofa", said(encoder_layers=10**8)),
    ("ofa", said(decoder_attention_heads=0)),
    ("ofa", said(resnet_type=["resnet50"])),
    ("ofa", said(pad_token_id=10**7)),
    ("git", said(num_hidden_layers=10**8)),
    ("git", said(num_attention_heads=0)),
    ("git", said(vision_config__num_hidden_layers=10**8)),
    ("git", said(id2label="many", num_labels=10**9)),
    ("git", said(vocab_size=10**10)),
    ("git", said(max_position_embeddings="many")),
    ("git", said("generation_config.json", bos_token_id=10**6)),
    ("vit-gpt2", said("generation_config.json", decoder_start_token_id=10**6)),
    ("git", said("processor_config.json", image_processor__size={"height": 10**6, "width": 10**6})),
]

FILES: list[tuple[str, Break]] = [
    ("blip", cut("tokenizer.json")),
    ("blip", pipe("generation_config.json")),
    ("blip", write("preprocessor_config.json", DEEP)),
    ("blip", write("tokenizer_config.json", DEEP)),
    ("blip", said("preprocessor_config.json", size={"height": 10**6, "width": 10**6})),
    ("blip", drop("model.safetensors")),
    ("blip", pipe("model.safetensors")),
    ("blip", cut("model.safetensors")),
    ("blip", cut("model.safetensors", 0.01)),
    ("blip", write("model.safetensors", b"\xff" * 64)),
    ("blip", pickled),
    ("blip", index([1])),
    ("blip", index({"weight_map": ["part.safetensors"]})),
    ("blip", index({"weight_map": {"a": 5}})),
    ("blip", index({"weight_map": {"a": "none.safetensors"}})),
    ("blip", outside),
    ("blip", weights(float("nan"))),
    ("blip", weights(float("inf"), "vision_model")),
    ("clip-prefix", cut("tokenizer.json")),
    ("clip-prefix", write("tokenizer.json", "{}")),
    ("clip-prefix", write("tokenizer.json", DEEP)),
    ("clip-prefix", weights(float("nan"), "mapper")),
    ("direct", weights(float("nan"))),
    ("direct", weights(0)),
    ("resnet-lstm", cut("tokenizer.json")),
    ("resnet-lstm", weights(float("-inf"), "bias")),
    ("resnet-lstm-gpt2", cut("tokenizer.json")),
    ("resnet-lstm-gpt2", said("tokenizer_config.json", eos_token="nowhere")),
    ("ofa", cut("vocab.json")),
    ("ofa", write("merges.txt", b"\xff\xff\n")),
    ("ofa", write("preprocessor_config.json", '{"size": 100000}')),
    ("git", cut("tokenizer.json")),
    ("git", weights(float("nan"))),
    ("git", write("processor_config.json", DEEP)),
    ("llava", cut("chat_template.jinja")),
    ("llava", write("chat_template.jinja", "{{ raise_exception('no') }}")),
    ("llava", write("chat_template.jinja", "{% for x in y %}")),
    ("llava", write("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    ("llava", cut("processor_config.json")),
    ("llava", index({"weight_map": {"a": "/etc/passwd"}})),
]

DECODING = [
    "[1]",
    DEEP,
    '{"num_beams": "x"}',
    '{"num_beams": 1.5}',
    '{"num_beams": true}',
    '{"num_beams": 0}',
    '{"num_beams": 1000000000}',
    '{"max_new_tokens": null}',
    '{"temperature": NaN, "do_sample": true}',
    '{"temperature": "hot"}',
    f'{{"temperature": 1{"0" * 400}}}',
    '{"early_stopping": "perhaps"}',
    '{"early_stopping": 1}',
    '{"seed": "s"}',
    '{"forbid": "cat"}',
    '{"consensus": "yes"}',
    '{"speed": 5}',
]


@pytest.mark.parametrize("family", sorted({family for family, _ in CONFIGS + FILES}))
def test_whole_ones_answer(family, copied):
    assert answer(copied(family)) is not None


@pytest.mark.parametrize(("family", "broken"), CONFIGS)
def test_a_config_of_nonsense(family, broken, copied):
    folder = copied(family)
    broken(folder)
    sentence(folder)


@pytest.mark.parametrize(("family", "broken"), FILES)
def test_a_file_of_nonsense(family, broken, copied):
    folder = copied(family)
    broken(folder)
    sentence(folder)
    assert not (Path(os.environ["CAPTIONER_CACHE"]) / "planted").exists()


@pytest.mark.parametrize("content", DECODING)
def test_search_settings_of_nonsense(content, copied):
    folder = copied("blip")
    write("decoding.json", content)(folder)
    assert "decoding.json" in sentence(folder)


# --- longer than a model can be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["blip", "clip-prefix", "git", "ofa", "resnet-lstm", "resnet-lstm-gpt2", "vit-gpt2", "mini"]
)
def test_a_text_has_at_most_the_models_positions(family, tiny_checkpoint):
    """The longest text is written, one token more is refused; the model's own default is never longer."""
    model = captioner.load("mini" if family == "mini" else str(tiny_checkpoint(family)), CPU)
    longest = model.speaker.longest
    assert model.decoding.max_new_tokens <= longest
    picture = [Image.effect_noise((40, 30), 90).convert("RGB")]
    greedy = replace(model.decoding, do_sample=False, num_beams=1, num_return_sequences=1)
    if longest < 1000:
        whole = replace(greedy, max_new_tokens=longest, min_new_tokens=longest)
        model.generate(picture, Request(whole))
    with pytest.raises(CaptionerError, match=f"at most {longest:,} tokens"):
        model.generate(picture, Request(replace(greedy, max_new_tokens=longest + 1)))
    if "prompt" in model.speaker.uses:
        with pytest.raises(CaptionerError, match="Shorten the start"):
            model.generate(picture, Request(greedy, prompt="a cat " * 20_000))


def test_the_models_own_limit_gives_way_to_a_long_start_and_a_named_one_does_not():
    model, picture = captioner.load("mini", CPU), [Image.effect_noise((40, 30), 90).convert("RGB")]
    request = Request(prompt=("a cat and a dog in a red hat by the sea " * 10)[:170].rstrip())
    start = len(model.speaker.beginning(request.prompt).start_ids)
    longest = model.speaker.longest - start
    assert 1 < longest < model.decoding.max_new_tokens
    assert model.generate(picture, request)
    assert model.generate(picture, request, max_new_tokens=longest)
    for name, number in (("max_new_tokens", longest + 1), ("min_new_tokens", longest + 1)):
        refusal = f"at most {longest} tokens after a start of {start}, and {name} is {number}"
        with pytest.raises(CaptionerError, match=refusal):
            model.generate(picture, request, **{name: number})


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapter(folder: Path, base: object) -> Path:
    folder.mkdir()
    said("adapter_config.json", base_model_name_or_path=base, peft_type="LORA", r=2, target_modules=["query"])(folder)
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("base", "told"),
    [
        (".", "no whole model"),
        (5, "does not name its base"),
        (["blip"], "does not name its base"),
        ("", "does not name its base"),
        ("interrogator", "no whole model"),
        ("vit", "needs its base"),
        ("../moved/away", "needs its base ../moved/away, which is not there"),
        ("Nobody/nothing", "needs its base"),
        ("/dev", "no checkpoint"),
    ],
)
def test_an_adapter_without_a_whole_base(base, told, tmp_path):
    assert told in sentence(adapter(tmp_path / "lora", base))


def test_adapters_of_each_other(tmp_path):
    one, two = adapter(tmp_path / "one", "../two"), adapter(tmp_path / "two", "../one")
    for folder in (one, two):
        assert "no whole model" in sentence(folder)


# --- ensembles --------------------------------------------------------------------------------------------------------


def ensemble(file: Path, members: object, **more: object) -> Path:
    file.write_text(json.dumps({"kind": "ensemble", "members": members, **more}), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "members",
    [
        5,
        [5],
        "mini",
        {"model": "mini"},
        [{"model": 5}],
        [{"model": "mini", "weight": "x"}],
        [{"model": "mini", "weight": None}],
        [{"model": "mini", "weight": True}],
        [{"model": "mini", "weight": -1}],
        [{"model": "mini", "weight": 1e400}],
        [{"model": "mini", "norm": 0}],
        [{"model": "mini", "norm": "x"}],
        [{"model": "gone"}],
        [{"model": "runs/gone"}],
        [{"model": "../gone.json"}],
        [{"model": "hub:"}],
        [],
    ],
)
def test_an_ensemble_of_nonsense(members, tmp_path):
    sentence(ensemble(tmp_path / "e.json", members))


def test_paths_of_members_are_said_to_be_seen_from_the_file(tmp_path):
    assert "seen from its folder" in sentence(ensemble(tmp_path / "e.json", [{"model": "runs/index"}]))


def test_ensembles_without_end(tiny_checkpoint, tmp_path):
    """A chain of 600; and 25 files that would ask a model 2^24 times."""
    direct = str(tiny_checkpoint("direct"))
    for number in range(600):
        ensemble(tmp_path / f"{number}.json", [{"model": f"{number + 1}.json"}])
    ensemble(tmp_path / "600.json", [{"model": direct}])
    assert "deep" in sentence(tmp_path / "0.json")
    for number in range(7):
        ensemble(tmp_path / f"{number}.json", [{"model": f"{number + 1}.json"}] * 10)
    ensemble(tmp_path / "7.json", [{"model": direct}])
    assert "more than 64 models" in sentence(tmp_path / "0.json")


def test_an_ensemble_file_of_no_end(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    sentence(tmp_path / "pipe.json")
    (tmp_path / "deep.json").write_text('{"kind": "ensemble", "members": ' + DEEP)
    sentence(tmp_path / "deep.json")


# --- indexes ----------------------------------------------------------------------------------------------------------


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Break:
    def broken(folder: Path) -> None:
        np.save(folder / name, change(np.load(folder / name)))

    return broken


def filled(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan)


@pytest.mark.parametrize(
    "broken",
    [
        said("index.json", weights=5),
        said("index.json", graph=5),
        said("index.json", graph={"links": 16, "entry": 0}),
        said("index.json", graph={"links": 10**9, "entry": 0}),
        said("index.json", temperature=float("nan")),
        said("index.json", temperature="low"),
        said("index.json", k=0),
        said("index.json", k=10**9),
        said("index.json", dims=10**9),
        said("index.json", settings=5),
        said("index.json", embedder=["x"]),
        said("index.json", backbone="none"),
        write("index.json", DEEP),
        write("index.json", "5"),
        pipe("index.json"),
        write("features.npy", b""),
        cut("features.npy"),
        pipe("features.npy"),
        array("features.npy", filled),
        array("embeddings.npy", filled),
        array("embeddings.npy", np.zeros_like),
        array("centre.npy", filled),
        write("prompt_rows.npy", b"\x93NUMPY"),
        drop("centre.npy"),
    ],
)
def test_an_index_of_nonsense(broken, tmp_path):
    folder = write_index(tmp_path / "index", random_units(6, 8), range(6), random_units(6, 16))
    broken(folder)
    with pytest.raises(CaptionerError):
        asked(folder)


def asked(folder: Path) -> None:
    """An index asked without its backbone, then with it."""
    from captioner.models.knn import knn

    knn.unit(knn.Index(folder).predict(random_units(1, 8)))
    knn.load(folder, CPU)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_an_index_without_its_prompts(content, tmp_path):
    from captioner.models.knn import knn

    folder = write_index(tmp_path / "index", random_units(6, 8), range(6), random_units(6, 16))
    for name in ("pictures", "prompts"):
        (folder / f"{name}.parquet").write_bytes(content)
    with pytest.raises(CaptionerError, match="cannot be read"):
        knn.Index(folder).similar(random_units(1, 8), 2)


def test_a_folder_without_an_index(tmp_path):
    from captioner.models.knn import knn

    with pytest.raises(CaptionerError, match="holds no index: make one with captioner index build"):
        knn.Index(tmp_path / "nope")


# --- through the command ----------------------------------------------------------------------------------------------


def test_the_command_says_one_sentence(copied, tmp_path, quick_python):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    broken = copied("clip-prefix")
    cut("tokenizer.json")(broken)
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    pipe("config.json")(waiting)
    for model in (broken, waiting):
        command = [quick_python, "-m", "captioner", "generate", tmp_path / "red.png", "--model", model]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (run.returncode, run.stdout) == (2, "")
        assert "Traceback" not in run.stderr
        assert len(run.stderr.strip().splitlines()) <= 3, run.stderr
