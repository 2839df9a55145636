"""Muon for hidden matrices beside AdamW for the rest, as one optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flowprior.errors import UserError
from flowprior.training.optim import load_optimizer


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trained weights of the linear layers within ``module`` that lie between other layers.

    Those are not among them that a module within names in a property ``end_layers``, an iterable of modules: the first ones, which read
    data, times or conditions, and the last ones, which write data. Nor are embeddings and convolutions.
    """
    ends = {id(p) for part in module.modules() for layer in getattr(part, "end_layers", ()) for p in layer.parameters()}
    linear = [part.weight for part in module.modules() if isinstance(part, nn.Linear)]
    trained = {id(p): p for p in linear if p.requires_grad and id(p) not in ends}  # a shared weight counts once
    return list(trained.values())


class MuonWithAdamW:
    """Steps, forgets gradients and is checkpointed as one optimiser.

    Muon (Jordan et al. 2024) orthogonalises the momentum of a matrix. Its update is scaled to AdamW's root mean square, as Liu et al. 2025
    (arXiv 2502.16982) do, so that both take one learning rate, schedule and weight decay.

    Args:
        muon_groups: parameter groups of matrices.
        adamw: over everything else, where there is anything else.
        lr: of the first step.

    Raises:
        UserError: this PyTorch has no Muon.
    """

    def __init__(self, muon_groups: list[dict[str, Any]], adamw: torch.optim.AdamW | None, lr: float) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"optim.name=muon needs PyTorch 2.9 or newer, and this is {torch.__version__}: write optim.name=adamw, or pip install -U torch"
            )
        muon = torch.optim.Muon(muon_groups, lr=lr, adjust_lr_fn="match_rms_adamw")
        self.parts = {"muon": muon, **({"adamw": adamw} if adamw is not None else {})}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of both."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self) -> None:
        """From the gradients that are there."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As every optimiser's."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Of both, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A ``ValueError`` for the state of other optimisers or of other parameters."""
        if state.keys() != self.parts.keys():
            raise ValueError(f"the state is of {', '.join(map(str, state))}, not of {', '.join(self.parts)}")
        for name, part in self.parts.items():
            load_optimizer(part, state[name])
