"""Train on forty pictures and compare with what you began with, in a report.

    python examples/train_and_compare.py OUT                 # offline, less than a minute on two cores
    python examples/train_and_compare.py OUT --base blip     # a LoRA adapter on BLIP, which the Hub has (about 1 GB)

It draws sixty pictures of shapes, each with its prompt: forty to train on, twenty with other prompts to measure on.

Without --base it trains no captioner: BLIP's weights are not in the package. What learns is a *direct model*, a head
from the frozen EfficientNet-Lite2 that the bundled model looks with, too, to the embedding of the prompt; it writes no
text. The report sets it beside the embedding that the bundled `mini` expects. You will see that forty pictures are
enough to know better than a general model what this small world is made of; they say nothing about other pictures.

With --base (a BLIP: a zoo name, a folder or a Hub id) the report sets base and adapter side by side, texts included.

It needs the extra `train`. OUT must not be there yet. Open OUT/report/report.html.
"""

import argparse
from pathlib import Path

from drawing import draw_pairs, run

from captioner import zoo
from captioner.errors import CaptionerError

OFFLINE = "--backbone efficientnet-lite2 --pool statistics --head residual --freeze backbone --lr 1e-3 --batch-size 8"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", help="A BLIP to adapt by LoRA; left out: a small direct model, offline")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=40, help="To learn from; half as many are measured on; 40 at most")
    options = parser.parse_args(arguments)
    out, base = options.out, options.base
    if out.exists():
        parser.error(f"{out} is there already. Name a new folder.")
    if not 10 <= options.pairs <= 40:
        parser.error("--pairs goes from 10 to 40.")
    if base:
        try:
            zoo.resolve(base)  # which fetches it, where it is a model of the Hub
        except CaptionerError as error:
            parser.error(str(error))
    draw_pairs(out / "train", 0, options.pairs)
    draw_pairs(out / "measure", 40, 40 + options.pairs // 2)
    how = ["--data", out / "train", "--out", out / "model", "--epochs", str(options.epochs), "--log-every", "20"]
    if base:
        run("python -m training.blip", *how, "--lora", "--base", base)
        models = f"base={base},trained={out / 'model'}"
    else:
        run("python -m training.direct", *how, *OFFLINE.split(), "--cache-features", out / "features")
        models = f"mini=mini+expected,trained={out / 'model'}"
    run("python -m eval report", "--data", out / "measure", "--models", models, "--out", out / "report")
    print(f"\nOpen {out / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
