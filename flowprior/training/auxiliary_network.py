"""An auxiliary network, which a loss of its own trains in step with the model: a discriminator, or a regulariser's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowprior.distributed import World
from flowprior.errors import NonFiniteLoss
from flowprior.training.optim import AuxiliaryOptimConfig, learning_rate, load_optimizer, make_optimizer


class AuxiliaryNetwork:
    """Module and optimiser as one checkpointed object, alike in every process. It is no submodule of what holds it, so that the
    model's optimiser leaves it alone.

    Args:
        module: the network; it must start alike in every process (seed its initialisation).
        optim: its optimiser and schedule.
        total_steps: of the schedule.
        world: gradients are averaged over these processes.
        start_step: at which the schedule starts.
        name: in the message when its loss is not finite.
    """

    def __init__(
        self,
        module: nn.Module,
        optim: AuxiliaryOptimConfig,
        total_steps: int,
        world: World,
        start_step: int = 0,
        name: str = "an auxiliary network",
    ) -> None:
        self.module, self.optim, self.world = module.to(world.device), optim, world
        self.total_steps, self.start_step, self.name = total_steps, start_step, name
        self.optimizer = make_optimizer(self.module, optim)

    def minimise(self, loss: Tensor, step: int) -> None:
        """One optimiser step down ``loss``, a scalar of this process's share of the batch.

        Raises:
            NonFiniteLoss: the loss or a gradient is NaN or infinite in some process; nothing was stepped.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.step(loss.detach(), step)

    def step(self, loss: Tensor, step: int) -> None:
        """One optimiser step with the gradients that lie in the module's parameters, averaged over all processes.

        Args:
            loss: what the gradients are of, or any scalar that is not finite when they must not be used.
            step: of training, from 0.

        Raises:
            NonFiniteLoss: as in :meth:`minimise`.
        """
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                self.world.all_reduce(parameter.grad).div_(self.world.size)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.optim.clip_norm or float("inf"))
        bad = ~torch.isfinite(norm + loss)
        if self.world.any(bad)[0]:
            self.optimizer.zero_grad(set_to_none=True)
            what = f"{self.name}'s loss" if not torch.isfinite(loss) else f"gradient of {self.name}" if bad else ""
            reported = [(rank, what) for rank, what in enumerate(self.world.all_gather(what)) if what]
            raise NonFiniteLoss("; ".join(f"process {rank}: {what}" for rank, what in reported))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step - self.start_step, self.total_steps - self.start_step, self.optim)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        load_optimizer(self.optimizer, state["optimizer"])
