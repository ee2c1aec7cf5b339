"""Adapters need peft, and peft takes bitsandbytes along whenever it is installed: only where something is quantized."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from captioner.compute.quantized import peft_without_bitsandbytes
from captioner.errors import BadOutput
from captioner.models.parts.adapters import merge
from training import blip

NOISE = ("kernels", "Warning", "bitsandbytes", "MatMul8bitLt", "warn(")


def test_only_what_is_quantized_takes_bitsandbytes_along(tiny_checkpoint, pairs: Path, tmp_path: Path) -> None:
    """One process, since what is imported stays: another embedder, an adapter, and at last quantized weights."""
    code = """
import sys
from captioner.text import embedding
base, data, out, empty = sys.argv[1:]
try:
    embedding.foreign(empty)
except embedding.MissingModel:
    print("asked", "sentence_transformers" in sys.modules, "bitsandbytes" in sys.modules)

from training import blip
plain, quantized = ([*options, "--base", base, "--data", data, "--max-steps", "1", "--samples", "2"]
                    for options in (["--lora"], ["--qlora", "4bit"]))
blip.main([*plain, "--out", f"{out}/plain"])
import captioner
captioner.load(f"{out}/plain", device="cpu").generate([f"{data}/0.png"])
assert "bitsandbytes" not in sys.modules
from transformers.utils import is_bitsandbytes_available
assert is_bitsandbytes_available()  # it is there for whoever needs it

blip.main([*quantized, "--out", f"{out}/quantized"])
assert "bitsandbytes" in sys.modules
paged = ["--optimizer", "adamw-8bit-paged", "--max-steps", "2"]
blip.main(["--base", base, "--data", data, "--out", f"{out}/paged", *paged])
"""
    (tmp_path / "empty").mkdir()
    arguments = (tiny_checkpoint("blip"), pairs, tmp_path, tmp_path / "empty")
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "asked True False" in done.stdout
    assert not [word for word in NOISE if word in done.stderr]


def test_where_there_is_no_peft_nothing_is_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the extra eval: another embedder needs sentence-transformers, and that no peft."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("peft", "bitsandbytes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    peft_without_bitsandbytes()
    assert "peft" not in sys.modules


def test_a_merged_model_is_whole_or_not_there(
    tiny_checkpoint, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--base", str(tiny_checkpoint("blip")), "--data", str(pairs), "--out", str(tmp_path / "run")]
    blip.main([*where, "--lora", "--max-steps", "1", "--samples", "0"])

    def full(tensors, filename, metadata=None):
        Path(filename).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(BadOutput, match="merged cannot be written"):
            merge(tmp_path / "run", tmp_path / "merged")
    assert [folder.name for folder in tmp_path.iterdir()] == ["run"]
    with pytest.raises(BadOutput, match="There is no folder"):
        merge(tmp_path / "run", tmp_path / "nowhere" / "merged")
    merge(tmp_path / "run", tmp_path / "merged")
    assert (tmp_path / "merged/model.safetensors").exists()
