"""`python -m training`: which recipes there are."""

from __future__ import annotations

from importlib import import_module

from captioner.run import lastresort

RECIPES = ("blip", "ofa", "clip_prefix", "resnet_lstm", "direct")


def main() -> None:
    """List them."""
    print("Training: one command for each kind of model, each with --help.\n")
    for name in RECIPES:
        purpose, _, _ = (import_module(f"training.{name}").__doc__ or "").partition("\n")
        print(f"  python -m training.{name:<12}  {purpose}")
    print("\n  python -m training.data          Prepare a data set, or draw pictures for prompts.")
    print("  python -m training.mini          The stages that made the bundled model, one by one.")


if __name__ == "__main__":
    lastresort.run("python -m training", main)
