"""Fine-tune a BLIP whose weights, gradients and optimizer are spread over all processes (FSDP2), on any number of them.

    torchrun --nproc-per-node 8 examples/fsdp.py --base blip-large --data my-pictures --out runs/blip-large
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/fsdp.py …

`--out` lies on a folder that all machines see. The same command again goes on from the newest checkpoint with the same
losses, on another number of processes too: a step always learns from `--step` pictures, of which each process takes
its share, and a checkpoint is cut anew for those who read it. It needs the extra `train`. Validation, LoRA and cards
are in `python -m training.blip`, which holds the whole model in every process.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import state_dict
from torch.distributed.fsdp import fully_shard

from captioner.errors import BadInput
from captioner.models.blip import Blip, BlipProcessor
from captioner.models.parts import checkpoint
from captioner.quiet import without_bars
from captioner.run import lastresort
from training.bases import resolved
from training.batches import IGNORED, Collate, Pairs, TextTargets
from training.data.sources import load_pairs

warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which nothing here writes to


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="blip-large", help="a zoo name, a folder or a Hub id (default: blip-large)")
    parser.add_argument("--data", nargs="+", required=True, help="pairs, as for python -m training.blip")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the checkpoints, and then of the model")
    parser.add_argument("--step", type=int, default=64, help="pictures a step, of all processes (default: 64)")
    parser.add_argument("--steps", type=int, default=1000, help="steps in all (default: 1000)")
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate (default: 1e-5)")
    parser.add_argument(
        "--save-every", type=int, default=100, help="steps from checkpoint to checkpoint (default: 100)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    if "RANK" not in os.environ:
        raise BadInput("Start it by torchrun, which tells each process which one it is: see --help.")
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    if options.step % processes:
        raise BadInput(f"--step {options.step} is to be shared by {processes} processes: choose a multiple.")
    folder = resolved(options.base)
    model = spread(checkpoint.read_model(Blip, folder).train().to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, foreach=True)
    processor = BlipProcessor.from_folder(folder)
    pairs = Pairs(load_pairs(options.data), processor.preprocess)
    collate = Collate(TextTargets(processor, 40))
    done = resume(model, optimizer, options.out)
    for step in range(done, options.steps):
        rows = rows_of_step(len(pairs), step, options.step)
        loss = learn(model, optimizer, collate([pairs[row] for row in rows[rank::processes]]), device)
        if rank == 0:
            print(f"step {step + 1}: loss {loss:.6f}", flush=True)
        if (step + 1) % options.save_every == 0:
            dcp.save(state_of(model, optimizer), checkpoint_id=options.out / "checkpoints" / str(step + 1))
    whole = state_dict.get_model_state_dict(
        model, options=state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if rank == 0:
        finished = checkpoint.read_model(Blip, folder)
        finished.load_state_dict(whole)
        with without_bars():
            finished.save_pretrained(options.out)
        processor.save_pretrained(options.out)
        print(f"Done. Use it: captioner generate --model {options.out} picture.png", flush=True)
    dist.destroy_process_group()


def spread(model: Blip) -> Blip:
    """Each layer is gathered while it is needed, and not longer."""
    for layer in (*model.vision_model.encoder.layers, *model.text_decoder.bert.encoder.layer):
        fully_shard(layer)
    return fully_shard(model)


def rows_of_step(count: int, step: int, size: int) -> list[int]:
    """Which pictures a step learns from: passes over all of them follow each other, each in an order of its own."""
    begin = step * size
    epochs = range(begin // count, (begin + size - 1) // count + 1)
    generators = (torch.Generator().manual_seed(epoch) for epoch in epochs)
    order = [row for generator in generators for row in torch.randperm(count, generator=generator).tolist()]
    return order[begin % count :][:size]


def learn(model: Blip, optimizer: torch.optim.Optimizer, batch: dict[str, Any], device: torch.device) -> float:
    """One step; the loss is the mean over the labels of all processes, however many those are."""
    batch = {name: tensor.to(device) for name, tensor in batch.items() if torch.is_tensor(tensor)}
    labels = batch["labels"].ne(IGNORED).sum()
    of_all = labels.clone()
    dist.all_reduce(of_all)
    loss = model(**batch).loss * labels / of_all
    (loss * dist.get_world_size()).backward()  # FSDP takes the mean of the processes' gradients
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    loss = loss.detach()
    dist.all_reduce(loss)
    return loss.item()


def state_of(model: Blip, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """What a checkpoint holds; of each tensor a process writes the piece that it has."""
    return dict(zip(("model", "optimizer"), state_dict.get_state_dict(model, optimizer), strict=True))


def resume(model: Blip, optimizer: torch.optim.Optimizer, out: Path) -> int:
    """Take up the newest checkpoint that was written to its end: how many steps it has behind it."""
    done = max((int(file.parent.name) for file in out.glob("checkpoints/*/.metadata")), default=0)
    if done:
        state = state_of(model, optimizer)
        dcp.load(state, checkpoint_id=out / "checkpoints" / str(done))
        state_dict.set_state_dict(
            model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
    return done


if __name__ == "__main__":
    lastresort.run("examples/fsdp.py", main)
