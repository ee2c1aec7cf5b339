"""Adapters need peft, and peft takes bitsandbytes along whenever it is installed: only where something is quantized."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from captioner.errors import BadOutput
from captioner.models.parts.adapters import merge
from training import blip

NOISE = ("kernels", "Warning", "bitsandbytes", "MatMul8bitLt", "warn(")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_an_adapter_is_trained_and_used_without_bitsandbytes(tiny_checkpoint, pairs: Path, tmp_path: Path) -> None:
    code = """
import sys
from training import blip
base, data, out = sys.argv[1:]
blip.main(["--base", base, "--data", data, "--out", out, "--lora", "--max-steps", "1", "--samples", "2"])
import captioner
captioner.load(out, device="cpu").generate([data + "/0.png"])
assert "bitsandbytes" not in sys.modules
from transformers.utils import is_bitsandbytes_available
assert is_bitsandbytes_available()  # it is there for whoever needs it
"""
    done = python(code, str(tiny_checkpoint("blip")), str(pairs), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert not [word for word in NOISE if word in done.stderr]


@pytest.mark.parametrize("options", ["'--qlora', '8bit'", "'--optimizer', 'adamw-8bit-paged'"])
def test_what_is_quantized_says_nothing_either(tiny_checkpoint, pairs: Path, tmp_path: Path, options: str) -> None:
    code = f"""
import sys
from training import blip
base, data, out = sys.argv[1:]
blip.main(["--base", base, "--data", data, "--out", out, {options}, "--max-steps", "2", "--samples", "2"])
assert "bitsandbytes" in sys.modules
"""
    done = python(code, str(tiny_checkpoint("blip")), str(pairs), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert not [word for word in NOISE if word in done.stderr]


def test_first_without_then_with(tiny_checkpoint, pairs: Path, tmp_path: Path) -> None:
    """One process may adapt plain weights first and quantized ones later."""
    code = """
import sys
from training import blip
base, data, out = sys.argv[1:]
for number, options in enumerate((["--lora"], ["--qlora", "4bit"])):
    where = ["--base", base, "--data", data, "--out", f"{out}{number}"]
    blip.main([*where, "--max-steps", "1", "--samples", "0", *options])
"""
    done = python(code, str(tiny_checkpoint("blip")), str(pairs), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr


def test_another_embedder_without_bitsandbytes(tmp_path: Path) -> None:
    code = """
import sys
from captioner.text import embedding
try:
    embedding.foreign(sys.argv[1])
except embedding.MissingModel:
    print("asked", "sentence_transformers" in sys.modules, "bitsandbytes" in sys.modules)
"""
    (tmp_path / "empty").mkdir()
    done = python(code, str(tmp_path / "empty"))
    assert done.stdout.split() == ["asked", "True", "False"], done.stderr


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
