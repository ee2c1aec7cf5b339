"""docs/clients.md keeps its word: its lines are answered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.web.routes.conftest import PICTURES, Service

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
LINES = re.findall(r"^    ((?:curl|printf) .+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.skipif(not (shutil.which("sh") and shutil.which("curl")), reason="the lines are a shell's, with curl")
@pytest.mark.parametrize("line", LINES)
def test_every_line_is_answered(service: Service, line: str) -> None:
    here = line.replace("http://127.0.0.1:7860", service.address)
    done = subprocess.run(["sh", "-c", here], cwd=PICTURES, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
