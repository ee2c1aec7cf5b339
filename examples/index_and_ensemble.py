"""Build an index, fit an ensemble of the bundled model and the index, and see the gain.

    python examples/index_and_ensemble.py OUT      # offline, less than a minute on two cores

It draws sixty pictures of shapes, each with its prompt: twenty go into the index, twenty fit the weights of the
ensemble, twenty are measured on. You will see the weights, a report of all three, and a line that says how much the
ensemble gains over the better of its members, and whether the 95 % interval of that difference leaves zero out. If it
does not, the gain may be chance.

It needs the extra `eval`. OUT must not be there yet.
"""

import argparse
import json
from pathlib import Path

from drawing import draw_pairs, run


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=20, help="In each of the three parts; 20 at most")
    options = parser.parse_args(arguments)
    out, size = options.out, options.pairs
    if out.exists():
        parser.error(f"{out} is there already. Name a new folder.")
    if not 10 <= size <= 20:
        parser.error("--pairs goes from 10 to 20.")
    for number, part in enumerate(("reference", "fit", "measure")):
        draw_pairs(out / part, number * size, (number + 1) * size)
    index, ensemble, report = out / "index", out / "ensemble.json", out / "report"
    run("captioner index build", out / "reference", "--out", index, "--k", "3", "--quiet")
    members = f"mini,{index}"
    run("captioner ensemble fit", "--members", members, "--data", out / "fit", "--out", ensemble, "--quiet")
    models = f"mini,index={index},ensemble={ensemble}"
    run("python -m eval report", "--data", out / "measure", "--models", models, "--out", report)
    print(f"\n{gain(report / 'report.json')}\nOpen {report / 'report.html'}")


def gain(file: Path) -> str:
    """What the report says of the ensemble and the better of its two members."""
    report = json.loads(file.read_text(encoding="utf-8"))
    means = {model["label"]: model["figures"]["cosine"]["mean"] for model in report["models"]}
    better = max(("index", "mini"), key=means.__getitem__)
    found = next(
        row
        for row in report["differences"]
        if row["metric"] == "cosine" and {row["a"], row["b"]} == {better, "ensemble"}
    )
    sign = 1 if found["b"] == "ensemble" else -1
    low, high = sorted((sign * found["low"], sign * found["high"]))
    sure = "it may be chance" if low <= 0 <= high else "more than chance"
    return (
        f"The ensemble gains {means['ensemble'] - means[better]:+.3f} over {better} ({means[better]:.3f}); "
        f"95 % interval {low:+.3f} to {high:+.3f}: {sure}."
    )


if __name__ == "__main__":
    main()
