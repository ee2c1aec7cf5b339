"""Caption a folder and review it.

    python examples/caption_and_review.py [FOLDER]

You will see a .txt with a prompt appear beside every picture of FOLDER (without FOLDER: beside copies of the five
pictures in examples/, in a new folder), the texts themselves, and the command that opens the page where they are
corrected. A .txt that was there is left alone. It takes seconds, offline, with the bundled model.
"""

import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from drawing import run

PICTURES = Path(__file__).parent / "pictures"


def main(arguments: list[str]) -> None:
    if len(arguments) > 1 or (arguments and not Path(arguments[0]).is_dir()):
        sys.exit("Name one folder of pictures, or none.")
    folder = Path(arguments[0]) if arguments else Path(tempfile.mkdtemp(prefix="captioned-"))
    if not arguments:
        for picture in PICTURES.glob("*.jpg"):
            shutil.copy(picture, folder)
    run("captioner generate", folder, "--sidecar", "--recursive", "--model", "mini", "--quiet")
    for text in sorted(folder.rglob("*.txt")):
        print(f"{text.relative_to(folder)}: {text.read_text(encoding='utf-8').strip()}")
    print('\nNow correct them in a browser (pip install "captioner[web]"):\n')
    print(f"    captioner serve {shlex.quote(str(folder))}")


if __name__ == "__main__":
    main(sys.argv[1:])
