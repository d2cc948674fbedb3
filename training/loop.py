"""The training loop shared by every model: accelerate, evaluation, the best weights, exact resume.

How a script uses it:

    result = train(
        model, loader, options,               # loader: DataLoader whose batch_sampler has set_epoch(epoch)
        evaluate=lambda model: {"loss": ...}, # called on every process, returns the same floats on each
        save=lambda model, folder: ...,       # writes a loadable model folder
        resume=args.resume,
    )

The model returns an output with `.loss`, the mean over its targets, and may return `.report`, a dict of figures whose
means are logged beside the loss. One epoch is one pass of `loader`; order and
augmentation must be functions of (seed, epoch) only, which is what makes a resumed run equal an uninterrupted one.

`output_dir` then holds
    best/            the best weights so far by `options.metric`, saved with `save` (averaged weights if `ema_decay`)
    last/            the newest weights, saved with `save` at every checkpoint
    checkpoints/     accelerator states to resume from (`step_00001000/`), the newest `keep_checkpoints` of them
    log.jsonl        one line per report: step, epoch, loss, learning rate, metrics, seconds
    curves.png       the same as a picture, if matplotlib is installed (see `training.plot_curves`)
    progress.json    written last, so a checkpoint it names is complete
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from modeling.errors import RecipeError

from .reports import RunReports, check_trackers


def native_bf16() -> bool:
    """Whether this machine multiplies bfloat16 in hardware: a recent GPU, or a processor with AMX or AVX512-BF16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return any(getattr(torch.cpu, f"_is_{kind}_supported", lambda: False)() for kind in ("amx_tile", "avx512_bf16"))


@dataclass
class LoopOptions:
    """The `training` section of a recipe.

    Args:
        output_dir: Where everything is written; one that holds another run is refused unless resuming.
        max_steps: Optimizer steps in all. None: as many as `epochs` gives.
        epochs: Passes over the data, used when `max_steps` is None.
        learning_rate: Peak rate of AdamW.
        schedule: `cosine` or `linear` (to `final_learning_rate_ratio` at the last step), or `constant`.
        warmup_steps: Linear warm-up from 0.
        cooldown_steps: With `constant`: the last steps fall linearly to the final rate.
        ema_decay: Decay of the exponential moving average of the weights; 0 turns it off. The average is what is
            evaluated and saved.
        mixed_precision: `no`, `bf16`, `fp16`, or `auto`: bf16 where the processor or GPU multiplies it natively.
        evaluate_every, save_every, log_every: In optimizer steps.
        metric: Key of the evaluation that decides which weights are best.
        greater_is_better: Direction of `metric`.
        patience: Stop after this many evaluations without gain; 0 never.
        evaluate_at_start: Evaluate before the first step, so that `best` is never worse than the weights started from.
        max_minutes: Stop cleanly (checkpoint written) after this wall time of this process; 0 never.
        trackers: Names of accelerate's trackers, e.g. `["tensorboard"]`, whose files go to `<output_dir>/trackers`.
    """

    output_dir: str
    max_steps: int | None = None
    epochs: float = 1.0
    learning_rate: float = 1e-3
    final_learning_rate_ratio: float = 0.05
    schedule: str = "cosine"
    warmup_steps: int = 0
    cooldown_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0
    gradient_accumulation_steps: int = 1
    ema_decay: float = 0.0
    mixed_precision: str = "no"
    evaluate_every: int = 1000
    save_every: int = 1000
    log_every: int = 50
    keep_checkpoints: int = 1
    metric: str = "loss"
    greater_is_better: bool = False
    patience: int = 0
    evaluate_at_start: bool = False
    max_minutes: float = 0.0
    seed: int = 0
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "linear", "constant"):
            raise RecipeError(f"schedule is cosine, linear or constant, not '{self.schedule}'.")
        if self.mixed_precision not in ("no", "bf16", "fp16", "auto"):
            raise RecipeError(f"mixed_precision is no, bf16, fp16 or auto, not '{self.mixed_precision}'.")
        self.betas = tuple(self.betas)  # JSON gives a list
        check_trackers(self.trackers)

    def resolved_precision(self) -> str:
        """`mixed_precision` with `auto` decided for this machine."""
        if self.mixed_precision != "auto":
            return self.mixed_precision
        return "bf16" if native_bf16() else "fp16" if torch.cuda.is_available() else "no"


@dataclass(frozen=True)
class TrainResult:
    """What a run ended with: steps done, best metric (None if never evaluated) and its step, why it stopped."""

    steps: int
    best_metric: float | None
    best_step: int
    stopped_by: str


@dataclass
class _Progress:
    """Where the run stands; registered with accelerate, so it is part of every checkpoint."""

    step: int = 0
    epoch: int = 0
    batches_done: int = 0  # of this epoch
    best_metric: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def learning_rate_factor(step: int, options: LoopOptions, total: int) -> float:
    """Share of the peak learning rate at `step` (0-based) of `total`."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    floor = options.final_learning_rate_ratio
    if options.schedule == "constant":
        left = total - step
        return 1.0 if left >= options.cooldown_steps else floor + (1 - floor) * left / max(options.cooldown_steps, 1)
    done = min((step - options.warmup_steps) / max(total - options.warmup_steps, 1), 1.0)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if options.schedule == "cosine" else 1 - done
    return floor + (1 - floor) * shape


def parameter_groups(
    model: nn.Module, options: LoopOptions, rates: dict[str, float] | None = None
) -> list[dict[str, Any]]:
    """Weight decay on matrices only; biases and norms are left alone. Frozen parameters are not in any group.

    Args:
        rates: peak learning rates of parts of the model by name, e.g. `{"encoder.backbone": 1e-5}`; a parameter
            belongs to the first whose name is in its path, else it learns at `options.learning_rate`.

    Raises:
        RecipeError: nothing that learns is in such a part.
    """
    rates = rates or {}
    parts: dict[str | None, list[nn.Parameter]] = {None: []} | {name: [] for name in rates}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[next((name for name in rates if f".{name}." in f".{path}"), None)].append(parameter)
    groups = []
    for name, trained in parts.items():
        if name is not None and not trained:
            raise RecipeError(f"A learning rate is given for '{name}', but nothing in it learns: unfreeze it.")
        rate = {} if name is None else {"lr": rates[name]}
        matrices, others = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]
        groups.append({"params": matrices, "weight_decay": options.weight_decay, **rate})
        groups.append({"params": others, "weight_decay": 0.0, **rate})
    return groups


def prepare_output_dir(path: str | Path, resume: bool) -> Path:
    """Create `output_dir`; refuse one that holds another run's weights, or to resume where there is nothing."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise RecipeError(f"{path} is a file: choose a folder as output_dir.")
    if resume and not (path / "progress.json").exists():
        raise RecipeError(f"Nothing to resume in {path}: it has no progress.json. Start without --resume.")
    if not resume and any((path / name).exists() for name in ("progress.json", "best")):
        raise RecipeError(f"{path} holds another run: add --resume to go on with it, or choose another output_dir.")
    path.mkdir(parents=True, exist_ok=True)
    if not resume and (path / "log.jsonl").exists():  # of a run that ended before its first checkpoint
        (path / "log.jsonl").unlink()
        shutil.rmtree(path / "trackers", ignore_errors=True)
    return path


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary sibling, then swap it in, so `target` is never half written."""
    temporary, old = target.with_name(target.name + ".writing"), target.with_name(target.name + ".old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


class Trainer:
    """State of one run. `train()` below is the door; the class only keeps its local variables together."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        options: LoopOptions,
        evaluate: Callable[[nn.Module], dict[str, float]],
        save: Callable[[nn.Module, Path], None],
        groups: list[dict[str, Any]] | None,
    ) -> None:
        self.options, self.evaluate, self.save = options, evaluate, save
        self.output = Path(options.output_dir)
        self.accelerator = Accelerator(
            mixed_precision=options.resolved_precision(),
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            log_with=options.trackers or None,
            project_dir=self.output / "trackers",
        )
        self.sampler = getattr(loader, "batch_sampler", None)
        optimizer = torch.optim.AdamW(
            groups or parameter_groups(model, options), lr=options.learning_rate, betas=options.betas
        )
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.total = options.max_steps or self.steps_of_epochs()
        self.progress = _Progress()
        self.accelerator.register_for_checkpointing(self.progress)
        self.average: AveragedModel | None = None
        if options.ema_decay:
            inner = self.accelerator.unwrap_model(self.model)
            self.average = AveragedModel(inner, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
            self.accelerator.register_for_checkpointing(self.average)
        self.reports = RunReports(self.accelerator, self.output, self.total)
        self.started = time.monotonic()
        self.seconds_before = 0.0

    def steps_of_epochs(self) -> int:
        try:
            batches = len(self.loader)
        except TypeError:
            raise RecipeError("How long an epoch of streamed data is, is not known: set training.max_steps.") from None
        return math.ceil(self.options.epochs * math.ceil(batches / self.options.gradient_accumulation_steps))

    # -- weights that count ----------------------------------------------------------------------------------------
    def weights(self) -> nn.Module:
        """The averaged model if there is one, else the trained model."""
        return self.average.module if self.average is not None else self.accelerator.unwrap_model(self.model)

    # -- checkpoints -----------------------------------------------------------------------------------------------
    def checkpoint(self) -> None:
        self.progress.seconds = self.seconds_before + time.monotonic() - self.started
        folder = self.output / "checkpoints" / f"step_{self.progress.step:08d}"
        # not as safetensors: on a GPU the weights of a recurrent layer are views of one piece of memory, which its
        # loader refuses (https://huggingface.co/docs/safetensors/torch_shared_tensors)
        self.accelerator.save_state(str(folder), safe_serialization=False)
        if self.accelerator.is_main_process:
            replace_folder(self.output / "last", lambda path: self.save(self.weights(), path))
            record = self.output / "progress.json"
            temporary = record.with_suffix(".writing")
            temporary.write_text(json.dumps({"checkpoint": folder.name, **self.progress.state_dict()}, indent=1))
            os.replace(temporary, record)
            for old in sorted(folder.parent.glob("step_*"))[: -self.options.keep_checkpoints]:
                shutil.rmtree(old, ignore_errors=True)
            self.reports.draw()
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        name = json.loads((self.output / "progress.json").read_text())["checkpoint"]
        self.accelerator.load_state(str(self.output / "checkpoints" / name))
        self.seconds_before = self.progress.seconds

    # -- the loop --------------------------------------------------------------------------------------------------
    def set_rates(self) -> None:
        factor = learning_rate_factor(self.progress.step, self.options, self.total)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor

    def evaluate_and_keep_best(self) -> None:
        model = self.weights()
        was_training = model.training
        model.eval()
        started = time.monotonic()
        # evaluation draws samples; training must go on as if it had not, or a resumed run would differ
        with torch.random.fork_rng(), torch.no_grad(), self.accelerator.autocast():
            metrics = {k: float(v) for k, v in self.evaluate(model).items()}
        model.train(was_training)
        seconds = time.monotonic() - started
        self.reports.log("evaluation", {"step": self.progress.step, **metrics, "evaluation_s": seconds})
        if self.options.metric not in metrics:
            raise RecipeError(f"metric '{self.options.metric}' is not evaluated; choose from {', '.join(metrics)}.")
        value, best = metrics[self.options.metric], self.progress.best_metric
        better = best is None or (value > best if self.options.greater_is_better else value < best)
        if better:
            self.progress.best_metric, self.progress.best_step = value, self.progress.step
            self.progress.evaluations_without_gain = 0
            if self.accelerator.is_main_process:
                replace_folder(self.output / "best", lambda path: self.save(model, path))
        else:
            self.progress.evaluations_without_gain += 1

    def batches(self) -> Iterator[Any]:
        """What is left of this epoch. Starting a DataLoader draws a random number; that draw is taken back, so that
        starting it again in the middle of an epoch leaves dropout as it was.
        """
        loader, done = self.loader, self.progress.batches_done
        if done and hasattr(self.sampler, "skip"):
            self.sampler.skip(done * self.accelerator.num_processes)
        elif done:
            if done >= len(loader):  # stopped at the end of an epoch; accelerate 1.1 would give a batch of None
                return
            loader = self.accelerator.skip_first_batches(loader, done)
        state, begun = torch.get_rng_state(), False
        for batch in loader:
            if not begun:
                torch.set_rng_state(state)
                begun = True
            yield batch
        if not begun:
            torch.set_rng_state(state)

    def stop_reason(self) -> str | None:
        options = self.options
        if self.progress.step >= self.total:
            return "max_steps"
        if options.patience and self.progress.evaluations_without_gain >= options.patience:
            return "patience"
        if options.max_minutes and time.monotonic() - self.started > 60 * options.max_minutes:
            return "max_minutes"
        return None

    def run(self) -> TrainResult:
        options, progress = self.options, self.progress
        self.reports.start(options, progress.step)
        self.model.train()
        running, report = torch.zeros((), device=self.accelerator.device), {}
        if options.evaluate_at_start and progress.step == 0:
            self.evaluate_and_keep_best()
        micro_steps, reason, last_log = 0, self.stop_reason(), time.monotonic()
        while reason is None:
            # accelerate's loader counts its own passes and tells the sampler: after a resume it must count from here
            self.loader.set_epoch(progress.epoch)
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(progress.epoch)
            for batch in self.batches():
                with self.accelerator.accumulate(self.model):
                    self.set_rates()
                    output = self.model(**batch)
                    loss = output.loss
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), options.max_grad_norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                running += loss.detach()
                for key, value in (getattr(output, "report", None) or {}).items():
                    report[key] = report.get(key, 0) + torch.as_tensor(value, dtype=torch.float32).to(running)
                micro_steps += 1
                progress.batches_done += 1
                if not self.accelerator.sync_gradients:
                    continue
                progress.step += 1
                self.reports.bar.update()
                if self.average is not None:
                    self.average.update_parameters(self.accelerator.unwrap_model(self.model))
                if progress.step % options.log_every == 0:
                    mean = self.accelerator.reduce(running / micro_steps, "mean").item()
                    if not math.isfinite(mean):
                        raise RecipeError(
                            f"The loss is {mean} at step {progress.step}: lower learning_rate or max_grad_norm and "
                            f"resume from the last checkpoint in {self.output}."
                        )
                    seconds = (time.monotonic() - last_log) / options.log_every
                    rate = self.optimizer.param_groups[0]["lr"]
                    more = {k: self.accelerator.reduce(v / micro_steps, "mean").item() for k, v in report.items()}
                    self.reports.log(
                        "train",
                        {"step": progress.step, "epoch": progress.epoch, "loss": mean, "grad_norm": float(norm)}
                        | {**more, "learning_rate": rate, "s_per_step": round(seconds, 4)},
                    )
                    running.zero_()
                    report.clear()
                    micro_steps, last_log = 0, time.monotonic()
                reason = self.stop_reason()
                last = reason is not None
                if progress.step % options.evaluate_every == 0 or last:
                    self.evaluate_and_keep_best()
                    reason = self.stop_reason()
                if progress.step % options.save_every == 0 or last or reason:
                    self.checkpoint()
                if reason:
                    break
            else:
                progress.epoch += 1
                progress.batches_done = 0
        self.reports.close()
        return TrainResult(progress.step, progress.best_metric, progress.best_step, reason)


def train(
    model: nn.Module,
    loader: Iterable[Any],
    options: LoopOptions,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]],
    save: Callable[[nn.Module, Path], None],
    groups: list[dict[str, Any]] | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train `model` on `loader`; see the head of this file.

    Args:
        model: Returns an output with `.loss` when called with a batch as keyword arguments.
        loader: DataLoader; if its `batch_sampler` has `set_epoch`, that is called before each epoch. If it has `skip`,
            that is told how many batches (of all processes) to leave out after a resume; else they are counted off.
        options: The `training` section of the recipe.
        evaluate: Given the weights that count (in eval mode), returns metrics.
        save: Writes the given weights and all that belongs to them into a folder.
        groups: Optimizer groups with their own `lr`; None applies `learning_rate` to every trained parameter.
        resume: Go on from the newest checkpoint in `output_dir`.

    Raises:
        RecipeError: output_dir holds another run, there is nothing to resume, or the loss is not finite.
    """
    prepare_output_dir(options.output_dir, resume)
    set_seed(options.seed)
    trainer = Trainer(model, loader, options, evaluate, save, groups)
    if resume:
        trainer.resume()
    return trainer.run()
