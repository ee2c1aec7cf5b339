"""Sending a finished model to the Hugging Face Hub: what can go wrong is found before training, and loses nothing."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from captioner.errors import BadInput, BadOutput

LEFT_HERE = ["checkpoint-*/**", "logs/**", "recipe.json"]
"""What concerns the run and not the model."""


def check_login(name: str) -> None:
    """Is this a name that the Hub takes, and may we write there?"""
    try:
        validate_repo_id(name)
        who = HfApi().whoami()
    except HFValidationError as error:
        raise BadInput(f"--push-to-hub {name}: this is no name of a model on the Hub ({error}).") from error
    except LocalTokenNotFoundError as error:
        raise BadInput("--push-to-hub needs a login: run `hf auth login`, or set HF_TOKEN.") from error
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise BadInput(
            f"--push-to-hub {name}: the Hub cannot be asked who you are ({first_line(error)}). Check the network and "
            "the token (`hf auth whoami`), or leave the option out and upload later."
        ) from error
    owner, _, _ = name.rpartition("/")
    mine = [who["name"], *(organisation["name"] for organisation in who.get("orgs", []))]
    if owner and owner not in mine:
        raise BadInput(f"--push-to-hub {name}: you may write as {' or '.join(mine)}, not as {owner}.")
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise BadInput("--push-to-hub needs a token that may write; yours only reads: `hf auth login` with another.")


def upload(folder: Path, name: str) -> None:
    """The model with its card and curves, as one commit; the repository is made if it is not there."""
    try:
        address = HfApi().create_repo(name, exist_ok=True).repo_id
        print(f"Sent to {HfApi().upload_folder(repo_id=address, folder_path=folder, ignore_patterns=LEFT_HERE)}")
    except (HTTPError, OfflineModeIsEnabled, OSError, RuntimeError) as error:
        left_out = " ".join(f"--exclude '{pattern}'" for pattern in LEFT_HERE)
        raise BadOutput(
            f"The model is whole in {folder}, but could not be sent to the Hub ({first_line(error)}). "
            f"Try again: hf upload {name} {folder} . {left_out}"
        ) from error


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
