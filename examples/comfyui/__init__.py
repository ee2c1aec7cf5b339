"""A ComfyUI node: pictures in, their prompts out, by a running `captioner serve`. It needs nothing beside ComfyUI.

Copy this folder to ComfyUI/custom_nodes/captioner, start `captioner serve`, then ComfyUI: the node is "Captioner:
picture to prompt". Where the server is elsewhere, set CAPTIONER_ADDRESS and CAPTIONER_SERVE_KEY before ComfyUI starts:
they are no inputs of the node, since a workflow travels with the pictures that it makes.
"""

import base64
import io
import json
import os
import urllib.error
import urllib.request

import numpy as np
from PIL import Image


def ask(png: bytes, address: str, key: str = "", **settings: object) -> str:
    """The prompt of one picture. Settings are those of POST /v1/generate; the server lists them at /docs."""
    body = json.dumps({"image": base64.b64encode(png).decode(), **settings}).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(f"{address.rstrip('/')}/v1/generate", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["text"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"captioner: {json.load(error)['detail']}") from error
    except urllib.error.URLError as error:
        raise RuntimeError(f"No server at {address} ({error.reason}). Start one: captioner serve") from error


def png_of(picture: np.ndarray) -> bytes:
    """ComfyUI's picture, height × width × 3 from 0 to 1, as the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray((np.asarray(picture).clip(0, 1) * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class CaptionerPrompt:
    """One text for every picture of the batch."""

    CATEGORY, FUNCTION = "captioner", "prompts"
    RETURN_TYPES, RETURN_NAMES, OUTPUT_IS_LIST = ("STRING",), ("prompt",), (True,)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        beams = ("INT", {"default": 0, "min": 0, "max": 32})
        words = ("STRING", {"default": ""})
        styles = (["", "prompt", "tags", "sentence", "paragraph"],)
        return {
            "required": {"image": ("IMAGE",), "num_beams": beams, "model": words, "prefix": words},
            "optional": {"style": styles, "instruction": ("STRING", {"default": "", "multiline": True})},
        }

    def prompts(
        self, image, num_beams: int, model: str, prefix: str, style: str = "", instruction: str = ""
    ) -> tuple[list[str]]:
        """Without beams it is the model's own way (mini draws sixteen texts); an empty model is the server's first.
        A style or an instruction is for a chat model."""
        address = os.environ.get("CAPTIONER_ADDRESS", "http://127.0.0.1:7860")
        given = {"num_beams": num_beams, "model": model, "prefix": prefix, "style": style, "instruction": instruction}
        settings = {name: value for name, value in given.items() if value}
        key = os.environ.get("CAPTIONER_SERVE_KEY", "")
        return ([ask(png_of(picture), address, key, **settings) for picture in image],)


NODE_CLASS_MAPPINGS = {"CaptionerPrompt": CaptionerPrompt}
NODE_DISPLAY_NAME_MAPPINGS = {"CaptionerPrompt": "Captioner: picture to prompt"}
