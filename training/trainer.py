"""transformers' Trainer, as the loop needs it: exact whatever the batches, whole checkpoints, and it stops in time."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from captioner.errors import BadOutput, CaptionerError, counted
from captioner.models.parts.narrow import narrowed
from training.batches import Collate, Pairs
from training.checkpoints import WHOLE, drop_old_checkpoints, is_whole, newest_whole, seal, untouched
from training.finite import Expectations, Expected
from training.job import Job, Sample
from training.progress import Watch, show
from training.streamed import StreamedPairs

CANNOT_WRITE = (OSError, RuntimeError, SafetensorError)
"""What torch and safetensors raise when a disk is full."""

PRIVATE = ("_clip_grad_norm", "_save_checkpoint", "_load_from_checkpoint", "_load_best_model")
"""Methods of transformers' Trainer that are overridden or called here although they are not public."""
if missing := [name for name in PRIVATE if not hasattr(Trainer, name)]:
    raise ImportError(f"This version of transformers has no Trainer.{missing[0]}: its training loop is another one.")


class DivergedError(CaptionerError):
    """The loss is no number any more."""


class NewEpoch(TrainerCallback):
    """Tells the training rows which epoch it is, in a resumed one too."""

    def __init__(self, rows: Pairs | StreamedPairs) -> None:
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.rows.begin_epoch(int(state.epoch))


class SaveEvery(TrainerCallback):
    """A checkpoint every N steps beside those of the evaluations."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.steps == 0:
            control.should_save = True


class LoopTrainer(Trainer):
    """transformers' Trainer with exact accumulation, whole checkpoints and captions at every evaluation."""

    def __init__(self, job: Job, arguments: TrainingArguments) -> None:
        self.job = job
        self.out = Path(job.recipe.out)
        self.rows_of_step: list[int] = []
        self.expected, self.expected_of_validation = Expectations(), Expectations()
        super().__init__(
            model=job.model,
            args=arguments,
            train_dataset=job.train_rows,
            eval_dataset=job.validation_rows,
            data_collator=Collate(job.targets),
        )
        # An adapter has thousands of parts, and each of the Trainer's walks through all of them, several at every step,
        # takes milliseconds while a GPU waits: what learns is found once, and the optimizer knows it too.
        self.learning = nn.ParameterList(parameter for parameter in job.model.parameters() if parameter.requires_grad)
        vars(job.model)["zero_grad"] = lambda: self.optimizer and self.optimizer.zero_grad()
        if job.recipe.compile:
            compile_layers(job.model)
        self.remove_callback(PrinterCallback)
        if self.is_world_process_zero() and tensorboard_is_here():
            self.add_callback(tensorboard(self.out / "logs"))
        self.add_callback(NewEpoch(job.train_rows))
        self.watch = Watch(lambda: len(self.rows_of_step) * self.accelerator.num_processes)
        self.add_callback(self.watch)
        # Makes the Trainer count the labels of a whole step; `compute_loss` then weighs each batch by its share.
        # Without it, accumulated batches count equally whatever their length (and BLIP's loss is scaled twice).
        self.model_accepts_loss_kwargs = True
        if job.recipe.early_stopping and job.validation_rows is not None:
            self.add_callback(EarlyStoppingCallback(job.recipe.early_stopping))
        if job.recipe.save_every:
            self.add_callback(SaveEvery(job.recipe.save_every))

    def train(self, *args, **kwargs):
        self.job.model.train()  # parts that were loaded are not yet
        # Layers of two towers share their code, which is compiled anew for the first, a smaller batch, to validate …
        compiling = torch._dynamo.config.patch(recompile_limit=64) if self.job.recipe.compile else nullcontext()
        try:
            with compiling:
                return super().train(*args, **kwargs)
        finally:
            self.watch.stop()

    def get_train_dataloader(self) -> DataLoader:
        """Its workers draw nothing at random (`batches.py`). To seed them nevertheless each would import peft and
        bitsandbytes, which speaks, wherever a process is no fork: on Python 3.14, macOS and Windows."""
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).worker_init_fn = None  # accelerate wraps it
        return loader

    def get_batch_samples(self, *args, **kwargs):
        batches, labels = super().get_batch_samples(*args, **kwargs)
        self.rows_of_step = [row for batch in batches for row in batch["rows"]]
        return batches, labels

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's mean loss, weighed by this batch's share of the step's labels (over all processes)."""
        rows, labels = inputs.pop("rows"), inputs.pop("counted")
        outputs = model(**inputs)
        loss = outputs.loss if labels else 0 * outputs.logits.sum()  # the mean over no label at all is no number
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes * labels / num_items_in_batch.clamp(min=1)
        self._expect("loss", loss, rows, model.training)
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As the Trainer's, which tells every part of the model at every step that it is to learn."""
        if not self.job.model.training:  # of several processes, `model` is a wrapper that no validation has told
            model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()

    def _clip_grad_norm(self, model):
        """Gradients that are no numbers spoil the weights: they must not be saved."""
        norm = super()._clip_grad_norm(model if self.is_fsdp_enabled else self.learning)
        if not self.args.fp16:  # in fp16 the scaler leaves such a step out
            self._expect("gradient", norm, self.rows_of_step)
        self._stop_if(self.expected.of_last_step())
        return norm

    def _expect(self, what: str, value: Tensor, rows: list[int], training: bool = True) -> None:
        expected = self.expected if training else self.expected_of_validation
        expected.add(value, Expected(what, self.state.global_step + training, rows))

    def _stop_if(self, broken: tuple[Expected, float] | None, training: bool = True) -> None:
        """Stop where something is no number."""
        if broken is None:
            return
        about, value = broken
        when = f"at step {about.step}" if training else f"of the validation after step {about.step}"
        pairs = self.job.train_rows if training else self.job.validation_rows
        names = [] if pairs is None else [pairs.name(row) for row in about.rows]
        raise DivergedError(
            f"The {about.what} is {value} {when}, in the batch of {', '.join(names)}. {untouched(self.out)}. "
            "Look at these pairs, or try a lower --lr, more --warmup or --precision fp32."
        )

    def log(self, *args, **kwargs) -> None:
        self._stop_if(self.expected.of_all())
        super().log(*args, **kwargs)

    def create_optimizer(self, model=None):
        if self.job.parameter_groups is not None and self.optimizer is None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(self.job.parameter_groups, weight_decay=self.args.weight_decay, **settings)
        return super().create_optimizer() if model is None else super().create_optimizer(model)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Validation loss, then captions of the sample: their mean cosine is a metric, a few are shown."""
        self._stop_if(self.expected.of_all())
        metrics = {"eval_loss": self._validation_loss()}
        self._stop_if(self.expected_of_validation.of_all(), training=False)
        if self.job.caption_sample is not None:
            metrics["eval_cosine"] = self._cosine(self.job.caption_sample)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """The mean over all labels, of all processes. The Trainer's counts each batch's mean once a picture, so that it
        depends on which pictures are in one batch, and those that fill up the last batches twice."""
        model = self.job.model.eval()
        sums = torch.zeros(2, device=self.args.device)  # of losses, and of the labels that they are about
        for inputs in self._own_share(narrowed(self.job.validation_rows, Pairs)):
            labels = inputs["counted"]
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
            sums += torch.stack((loss.float() * labels, torch.full_like(loss, labels, dtype=torch.float)))
        total, counted_labels = self.accelerator.reduce(sums).tolist()
        return total / max(1, counted_labels)

    def _own_share(self, rows: Pairs) -> DataLoader:
        """This process's part of the rows, in batches: some processes may have one more than others."""
        processes = self.accelerator
        return DataLoader(
            Subset(rows, range(processes.process_index, len(rows), processes.num_processes)),
            self.args.per_device_eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.device.type == "cuda",
        )

    def _cosine(self, caption_sample: Callable[[], list[Sample]]) -> float:
        """Of the captions, which the first process writes; all must agree which checkpoint is best."""
        cosine = [0.0]
        if self.is_world_process_zero():
            samples = caption_sample()
            cosine = [sum(cosine for *_, cosine in samples) / len(samples)]
            show(samples, self.state.global_step)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(cosine, src=0)
        return cosine[0]

    def _save_checkpoint(self, model, trial) -> None:
        folder = self.out / f"checkpoint-{self.state.global_step}"
        self._stop_if(self.expected.of_all())
        refuse_no_numbers(self.job.model, self.out)
        try:
            if self.args.should_save:  # twice in one step where an epoch ends at a multiple of --save-every
                (folder / WHOLE).unlink(missing_ok=True)
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                seal(folder, self.state.global_step)
        except CANNOT_WRITE as error:
            shutil.rmtree(folder, ignore_errors=True)
            earlier = newest_whole(self.out)
            raise BadOutput(
                f"Checkpoint {folder.name} cannot be written ({error}). "
                f"{f'{earlier.name} is whole' if earlier else 'There is no earlier one'}; "
                "make room and go on with --resume."
            ) from error
        if self.args.should_save:
            drop_old_checkpoints(self.out, self.job.recipe.keep, self.state.best_model_checkpoint)

    def take_finished(self, checkpoint: Path) -> None:
        """Of a run that had made all its steps: the state, and the weights that it would have ended with."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = self._check_best() if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(str(best or checkpoint))

    def _load_best_model(self) -> None:
        """The Trainer's fails where the best checkpoint is damaged, and says nothing where it is gone."""
        if self._check_best() is not None:
            super()._load_best_model()

    def _check_best(self) -> Path | None:
        """The best checkpoint. One that is not whole is told and forgotten: the last step's weights are kept."""
        if self.state.best_global_step is None:
            return None
        best = self.out / f"checkpoint-{self.state.best_global_step}"
        if is_whole(best):
            self.state.best_model_checkpoint = str(best)  # its folder may have been moved
            return best
        if self.is_world_process_zero():
            what = "is damaged" if best.exists() else "is gone"
            print(f"{best.name}, the best one, {what}: the model is that of the last step", file=sys.stderr)
        self.state.best_global_step = self.state.best_model_checkpoint = self.state.best_metric = None
        return None


def refuse_no_numbers(model: nn.Module, out: Path) -> None:
    """Weights that are no numbers must not take the place of those that are."""
    spoilt = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if spoilt:
        raise DivergedError(
            f"There are values that are no numbers in {counted(len(spoilt), 'tensor')} of weights ({spoilt[0]} …): the "
            f"model is not saved. {untouched(out)}. Try a lower --lr, more --warmup or --precision fp32."
        )


def tensorboard_is_here() -> bool:
    """TensorBoard is in an extra: without it a run has its log on standard error and its curves."""
    return importlib.util.find_spec("tensorboard") is not None


def tensorboard(folder: Path) -> TrainerCallback:
    """Writes loss, rate and cosine there."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(folder))


def compile_layers(model: nn.Module) -> None:
    """Let torch compile the layers, in place. They are alike: one is compiled, and all use it. The whole model would
    take many times as long; that is for those without such layers."""
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in layers or [model]:
        module.compile()
