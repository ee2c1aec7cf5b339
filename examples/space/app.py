"""A Gradio Space that asks a running `captioner serve`: picture in, prompts out.

Here: `pip install -r requirements.txt`, `captioner serve`, `python app.py`. As a Space: upload both files, and set the
variable CAPTIONER_ADDRESS (https://…, where the server can be reached) and the secret CAPTIONER_SERVE_KEY (its
--api-key). Visitors see neither.
"""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

ADDRESS = os.environ.get("CAPTIONER_ADDRESS", "http://127.0.0.1:7860")
KEY = os.environ.get("CAPTIONER_SERVE_KEY", "")


def prompts(picture: str, count: int = 3, address: str = ADDRESS, key: str = KEY) -> list[str]:
    """Up to so many different prompts of a picture file, made in the model's own way, the best one first."""
    settings = urlencode({"num_candidates": int(count)})
    headers = {"Content-Type": "application/octet-stream", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{address}/v1/generate?{settings}", Path(picture).read_bytes(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            row = json.load(answer)
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["detail"]) from error
    except urllib.error.URLError as error:
        raise ValueError(f"The captioner does not answer ({error.reason}).") from error
    return list(dict.fromkeys([row["text"], *(candidate["text"] for candidate in row["candidates"])]))


def main() -> None:
    import gradio  # only now: `prompts` is of use without it

    def shown(picture: str | None, count: int) -> str:
        if picture is None:
            raise gradio.Error("Choose a picture first.")
        try:
            return "\n\n".join(prompts(picture, count))
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    gradio.Interface(
        shown,
        [gradio.Image(type="filepath", label="Picture"), gradio.Slider(1, 8, 3, step=1, label="How many prompts")],
        gradio.Textbox(label="Prompts", lines=6),
        title="Captioner: the prompt that could have made a picture",
        flagging_mode="never",
    ).launch()


if __name__ == "__main__":
    main()
