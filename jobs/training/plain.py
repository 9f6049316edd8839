"""The plain loop: transformers' Trainer takes the steps, with our batches, our loss and our schedule.

Nothing here is clever, so that faster loops have something to be held against.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from jobs.hardware import give_freed_memory_back
from jobs.training.data import Row, epoch_order
from jobs.training.loop import Job
from jobs.training.monitor import Monitor
from jobs.training.schedule import make_optimizer, parameter_groups


def train(job: Job, monitor: Monitor) -> None:
    """A TrainingLoop (jobs.training.loop)."""
    trainer = _PlainTrainer(job, monitor)
    trainer.train(resume_from_checkpoint=str(job.state) if job.state else None)


class _EpochSampler(Sampler[int]):
    """The shared order of each epoch; the Trainer calls `set_epoch`."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed, self._epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self._count, self._seed, self._epoch))

    def __len__(self) -> int:
        return self._count


class _PlainTrainer(Trainer):
    def __init__(self, job: Job, monitor: Monitor) -> None:
        training = job.spec.training
        self._job = job
        self.step_tokens = 0
        arguments = TrainingArguments(
            output_dir=str(job.folder),  # nothing is written there: checkpoints are the monitor's
            max_steps=job.total_steps,
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation,
            max_grad_norm=training.max_grad_norm,
            seed=training.seed,
            use_cpu=not job.device.is_cuda,
            bf16=job.device.dtype == torch.bfloat16,
            fp16=job.device.scales_losses,
            logging_steps=1,
            logging_nan_inf_filter=False,  # a loss that is not a number must be seen
            save_strategy="no",
            eval_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0,
            remove_unused_columns=False,
            use_cache=False,
        )
        assert arguments.device  # sets _n_gpu, which we overrule: a run computes on one GPU, never in DataParallel
        arguments._n_gpu = min(arguments.n_gpu, 1)
        super().__init__(
            model=job.model,
            args=arguments,
            data_collator=self._collate,
            train_dataset=job.train,  # type: ignore[arg-type]
            optimizers=make_optimizer(job, parameter_groups(job)),
            callbacks=[_Steps(self, job, monitor)],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # hands `compute_loss` the trained items of the whole step

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return _EpochSampler(len(self._job.train), self._job.spec.training.seed)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.step_tokens += inputs.pop("tokens")
        items = inputs.pop("items")
        job = self._job
        loss = job.objective.loss(model, inputs) / num_items_in_batch
        extra = job.method.regularisation(model, job.method_params)
        return loss if extra is None else loss + extra * (items / num_items_in_batch)

    def _collate(self, rows: Sequence[Row]) -> dict[str, Any]:
        objective = self._job.objective
        return {**objective.collate(rows), "tokens": sum(map(len, rows)), "items": objective.items(rows)}

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return max(1, sum(batch["items"] for batch in batch_samples))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # counted by nobody

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The job's model already has the checkpoint's weights."""

    def save_state_to(self, folder: Path) -> None:
        """What `train(resume_from_checkpoint=folder)` reads."""
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))


class _Steps(TrainerCallback):
    """Hands every step to the monitor and ends the training where it says so."""

    def __init__(self, trainer: _PlainTrainer, job: Job, monitor: Monitor) -> None:
        self._trainer = trainer
        self._job = job
        self._monitor = monitor

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._monitor.begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        job = self._job
        job.method.before_zero_grad(job.model, job.method_params, state.global_step + 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return  # the summary at the end
        state.log_history.clear()  # the events are the history; this one would grow with every checkpoint
        tokens, self._trainer.step_tokens = self._trainer.step_tokens, 0
        if not self._job.device.is_cuda:
            give_freed_memory_back()  # steps' lengths differ: what one leaves would lie beside the next one's
        going_on = self._monitor.step_done(
            state.global_step,
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            tokens=tokens,
            save_state=self._trainer.save_state_to,
        )
        if not going_on:
            control.should_training_stop = True
