"""The one training loop. A trainer hands it an objective, a module whose forward is the loss, and a stream of batches."""

from __future__ import annotations

import contextlib
import inspect
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowprior.distributed import World
from flowprior.errors import NonFiniteLoss, UserError
from flowprior.progress import progress_bar
from flowprior.run.reporting import RunLog
from flowprior.training.checkpoint import Checkpoints, Stateful
from flowprior.training.compilation import compile_parts, compiler_failures_told
from flowprior.training.config import TrainConfig
from flowprior.training.ema import EMA
from flowprior.training.non_finite import SkippedSteps, what_is_not_finite
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.optim import OptimConfig, learning_rate, make_optimizer
from flowprior.training.randomness import StepRandom
from flowprior.training.step_window import StepWindow
from flowprior.training.stop_signals import StopSignals

# Buffers are alike in all processes without DDP's help; since torch 2.14 the option has another name.
OWN_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


class CompilerInterrupted(Exception):
    """Ctrl-C has ended the compiler as well, and with it the step or evaluation under way."""


class TrainingLoop:
    """Trains ``objective`` and keeps an average of ``model``, the part of it that is handed on.

    Args:
        objective: see :class:`Objective`. Its parameters that require gradients are trained.
        model: the module inside it to average.
        config, optim: see the classes.
        world: this process among those of the run.
        folder: of the stage, for checkpoints and the log; None keeps nothing (a library call).
        saved: what a resumed run needs besides the model, optimiser and average, and the objective's auxiliary networks.
        description: before the progress bar.
        progress: show the bar.
    """

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        config: TrainConfig,
        optim: OptimConfig,
        world: World,
        folder: Path | None = None,
        saved: dict[str, Stateful] | None = None,
        description: str = "train",
        progress: bool = True,
    ) -> None:
        self.config, self.optim, self.world, self.folder = config, optim, world, folder
        self.model, self.description = model, description
        self.progress = progress and world.is_main
        self.optimizer = make_optimizer(objective, optim)
        self.ema = EMA(model, optim.ema_decay) if optim.ema_decay else None
        if config.compile:
            compile_parts(model, backward_again=objective.backward_again)
        forward: nn.Module = objective
        if world.size > 1:
            devices = [world.device.index] if world.device.type == "cuda" else None
            forward = DistributedDataParallel(forward, device_ids=devices, **{OWN_BUFFERS: False})
        self.objective, self.forward = objective, forward
        self.skipped = SkippedSteps(config.non_finite_steps)
        objects: dict[str, Stateful] = {"model": model, "optimizer": self.optimizer, "skipped": self.skipped}
        objects |= (saved or {}) | objective.auxiliary_state()
        if self.ema is not None:
            objects["ema"] = self.ema
        self.checkpoints = Checkpoints(folder / "checkpoints", objects, config.keep_checkpoints) if folder else None
        self.step = self.checkpoints.load_latest(world.device) if self.checkpoints else 0
        starts = world.all_gather(self.step)  # and nobody removes anything before everybody has read
        if len(set(starts)) > 1:
            raise UserError(
                f"the processes find checkpoints of different steps ({min(starts)} to {max(starts)}) in {folder}: "
                "run_dir must lie on a disk that all nodes share"
            )
        if self.checkpoints and world.is_main:
            self.checkpoints.sweep()
        self.log = RunLog(folder, self.step, config.tensorboard) if folder and world.is_main else None
        self.replaying: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        if config.cuda_graphs and not config.compile and world.device.type == "cuda":
            from flowprior.training.cuda_graphs import GraphedParts

            self.replaying = GraphedParts(objective).replaying
        bf16 = config.uses_bf16(world.device)
        self.autocast = torch.autocast(world.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
        self.signals = StopSignals()
        self.stopping = False
        # For a single step, which a benchmark makes by itself: run() opens its own.
        self.window = StepWindow(world, self.step)

    def run(
        self,
        batches: Iterable[dict[str, Tensor]],
        evaluate: Callable[[int], dict[str, float]] | None = None,
        after_optimizer_step: Callable[[StepOutput, int], dict[str, Tensor]] | None = None,
    ) -> dict[str, float]:
        """Train until ``config.steps``.

        A step whose loss or gradient is not finite in some process is skipped in all of them: no weight, average or moment changes,
        the count goes into the log as ``skipped_steps``, and the next step comes with its own samples and noise.

        Args:
            batches: micro-batches from position ``step * accumulation`` on, this process's share of each.
            evaluate: called in every process, every ``eval_steps`` and at the end, with averaged weights in place and no
                gradients; its metrics are logged.
            after_optimizer_step: called with the step's output, whose samples are this process's, and the step; the metrics that it returns
                are logged.

        Returns:
            The last evaluation's metrics; empty where this call had no step left to make.

        Raises:
            NonFiniteLoss: ``config.non_finite_steps`` steps in a row were skipped.
        """
        if self.step and self.step < self.config.steps and self.world.is_main:
            print(f"{self.description}: going on from step {self.step}", file=sys.stderr, flush=True)
        evaluated: dict[str, float] = {}
        stream, config = iter(batches), self.config
        bar = progress_bar(
            total=config.steps,
            initial=self.step,
            desc=self.description,
            unit="step",
            disable=not self.progress,
        )
        self.window = StepWindow(self.world, self.step)
        noted = self.signals.noted(self.world.is_main) if self.folder else contextlib.nullcontext()
        with contextlib.suppress(CompilerInterrupted), noted, bar:
            while self.step < config.steps and not self.stopping:
                output = self.train_step(stream)
                if output is not None:
                    if after_optimizer_step is not None:
                        output.terms |= after_optimizer_step(output, self.step)
                    self.window.add(output.scalars)
                self.step += 1
                bar.update()
                last = self.step == config.steps
                if self.step % config.log_steps == 0 or last:
                    metrics = self.window.close(self.step)
                    if self.skipped.total:
                        metrics["skipped_steps"] = self.skipped.total
                    self._write(metrics)
                    bar.set_postfix(loss=f"{metrics.get('loss', float('nan')):.4f}", refresh=False)
                if evaluate is not None and (last or (config.eval_steps and self.step % config.eval_steps == 0)):
                    evaluated = self._evaluated(evaluate)
                    self._write(evaluated)
                # Several processes stop together, after the step in which all have heard of it.
                if self.world.size == 1:
                    self.stopping = self.signals.number is not None
                if self.stopping or last or (config.checkpoint_steps and self.step % config.checkpoint_steps == 0):
                    self.save()
            if not self.stopping:  # a signal that came behind the last step stops what would follow
                [self.stopping] = self.world.any(self.signals.number is not None)
        if self.log is not None:
            self.log.close()
        if self.stopping:
            self._say_stopped()
            raise SystemExit(128 + (self.signals.number or signal.SIGTERM))
        return evaluated

    def train_step(self, stream: Iterator[dict[str, Tensor]]) -> StepOutput | None:
        """The optimiser step number ``self.step``, over the next ``accumulation`` micro-batches; :meth:`run` makes them all.

        Returns:
            What the micro-batches came to, or None where the step was skipped.
        """
        rate = learning_rate(self.step, self.config.steps, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # After an evaluation. Telling every module in every step takes a percent of a small network's.
        if not self.objective.training:
            self.objective.train()
        with self._compiling():
            output = self._accumulate(stream)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        bad_somewhere, self.stopping = self.world.any(
            ~torch.isfinite(norm + output.loss), self.signals.number is not None
        )
        if bad_somewhere:
            self._skip(what_is_not_finite(output.scalars | output.samples, self.objective, self.world))
            return None
        output.terms |= {"grad_norm": norm.detach(), "lr": torch.tensor(rate)}
        try:
            output.terms |= self.objective.train_auxiliary(output, self.step, self.autocast)
        except NonFiniteLoss as error:
            self._skip(str(error))
            return None
        if self.optim.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.optim.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.step)
        self.skipped.in_a_row = 0
        return output

    def _accumulate(self, stream: Iterator[dict[str, Tensor]]) -> StepOutput:
        """Gradients of all micro-batches' mean loss; returns what they come to together, detached."""
        config, world, outputs = self.config, self.world, []
        for micro in range(config.accumulation):
            start = time.perf_counter()
            batch = next(stream)
            self.window.waited += time.perf_counter() - start
            batch = {name: value.to(world.device, non_blocking=True) for name, value in batch.items()}
            slot, slots = micro * world.size + world.rank, config.accumulation * world.size
            random = StepRandom(config.seed, self.step, slot, slots, world.device)
            random.seed_dropout()
            last = micro + 1 == config.accumulation
            unsynchronised = contextlib.nullcontext() if last or world.size == 1 else self.forward.no_sync()
            with unsynchronised, self.replaying():
                with self.autocast:
                    output = self.forward(batch, random)
                (output.loss / config.accumulation).backward()
            outputs.append(output.detached())
        return StepOutput.of_step(outputs)

    def _skip(self, problem: str) -> None:
        """Leave everything as it was before this step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped.add(self.step, problem, tell=self.world.is_main)

    @torch.no_grad()
    def _evaluated(self, evaluate: Callable[[int], dict[str, float]]) -> dict[str, float]:
        start = time.perf_counter()
        self.objective.eval()
        # Interrupted, the step is whole; the last one is made again, for its evaluation.
        with self._compiling(saves=self.step < self.config.steps), self.averaged_weights(), self.autocast:
            metrics = evaluate(self.step)
        self.window.leave_out(time.perf_counter() - start)
        return metrics

    @contextlib.contextmanager
    def _compiling(self, saves: bool = False) -> Iterator[None]:
        """Guards calls that may compile. Ctrl-C on a terminal ends the compiler's processes as well: its failure then counts as a stop
        of this process, and the others hear nothing of it."""
        if not self.config.compile:
            yield
            return
        try:
            with compiler_failures_told():
                yield
        except (UserError, RuntimeError) as error:
            if self.signals.number is None:
                raise
            if saves and self.world.size == 1:
                self.save()
            self.stopping = True
            raise CompilerInterrupted from error

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within, the model holds the weights that are handed on: the average where one is kept."""
        return self.ema.applied() if self.ema is not None else contextlib.nullcontext()

    def save(self) -> None:
        """Write a checkpoint of this step, from the first process."""
        if self.checkpoints is not None and self.world.is_main and self.step not in self.checkpoints.steps():
            self.checkpoints.save(self.step)
        self.world.barrier()

    def _say_stopped(self) -> None:
        if self.world.is_main:
            print(f"stopped after step {self.step}; run the same command again to go on", file=sys.stderr, flush=True)

    def _write(self, metrics: dict[str, float]) -> None:
        if self.log is not None:
            self.log.write(self.step, metrics)
