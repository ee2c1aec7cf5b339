"""What is loaded for a question, and when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.chat_server import serving

ASKING = """
import sys
from captioner.cli.main import app
app(sys.argv[1:], standalone_mode=False)
print(*{"torch", "transformers"} & sys.modules.keys())
"""


def test_a_model_of_a_server_costs_no_import_of_torch(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "red.png")
    with serving() as server:
        words = ["generate", str(tmp_path / "red.png"), "--model", f"openai:{server.address}#painter"]
        done = subprocess.run([sys.executable, "-c", ASKING, *words], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["a red square, oil on canvas", ""], done.stderr
