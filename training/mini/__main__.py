"""python -m training.mini STAGE --data FOLDER --work FOLDER (see examples/train_mini.sh for all stages in order)"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.mini", description=__doc__)
    stages = ("features", "texts", "split", "pairs", "head", "language", "reward", "choose", "export", "measure")
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--most", type=int, default=60_000, help="texts: prompts taken of the largest list")
    parser.add_argument("--backwards", action="store_true", help="features: begin with the last file")
    parser.add_argument("--steps", type=int, default=5300, help="language, reward: optimizer steps")
    parser.add_argument("--count", type=int, default=200, help="choose: validation prompts")
    parser.add_argument("--out", type=Path, help="export, measure: the checkpoint folder; pairs: the data")
    parser.add_argument("--held-back", action="store_true", help="export: with the head that met no validation prompt")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage in ("features", "texts"):
        from training.mini import features

        if args.stage == "features":
            features.features(args.data, args.work, args.backwards)
        else:
            features.texts(args.data, args.work, args.most, args.seed)
    elif args.stage == "split":
        from training.mini import split

        split.split(args.data, args.work)
    elif args.stage == "pairs":
        from training.mini import pairs

        pairs.pairs(args.data, args.work, args.out, args.seed)
    elif args.stage == "head":
        from training.mini import head

        head.head(args.data, args.work)
    elif args.stage == "reward":
        from training.mini import reward

        reward.reward(args.data, args.work, args.steps, args.seed)
    elif args.stage == "choose":
        from training.mini import export

        export.choose(args.data, args.work, args.count)
    elif args.stage == "export":
        from training.mini import export

        export.export(args.data, args.work, args.out, "head-without-validation.pt" if args.held_back else "head.pt")
    elif args.stage == "measure":
        from training.mini import measure

        measure.measure(args.data, args.work, args.out)
    else:
        from training.mini import language

        language.language(args.work, args.steps, args.seed)


if __name__ == "__main__":
    main()
