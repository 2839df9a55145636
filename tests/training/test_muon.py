"""Muon beside AdamW: which weights it takes, what a step is, and that a run goes on bit for bit."""

import copy

import pytest
import torch
from torch import nn

from flowprior.data.loader import training_batches
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import build_config
from flowprior.training.loop import TrainingLoop
from flowprior.training.muon import hidden_matrices
from flowprior.training.optim import OptimConfig, make_optimizer
from mar.model import MARConfig
from sit.model import SiTConfig
from small_run import Denoise, Points, small_config
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.vit import ViTConfig

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 brings Muon")
WIDTH = 36
VIT = ViTConfig(width=WIDTH, depth=1, heads=3)
MODELS = {
    "velocity": lambda: VelocityMLP(4, WIDTH, 1, cond_channels=6),
    "autoencoder": lambda: Autoencoder(AutoencoderConfig(16, 8, 2, 4, encoder=VIT, decoder=VIT)),
    "sit": lambda: build_config(SiTConfig, {"width": WIDTH, "depth": 1, "heads": 2}).build(2, 4, 10),
    "mar": lambda: build_config(
        MARConfig,
        {"width": WIDTH, "encoder_depth": 1, "decoder_depth": 1, "heads": 2, "head_width": WIDTH, "head_depth": 1},
    ).build(2, 4, 10),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_hidden_matrices_of_a_model_are_its_linear_layers_between_vectors_of_its_own_width(name):
    model = MODELS[name]()
    names = {id(p): n for n, p in model.named_parameters()}
    hidden = {names[id(p)] for p in hidden_matrices(model)}
    linear = {f"{n}.weight": part for n, part in model.named_modules() if isinstance(part, nn.Linear)}
    inner = {n for n, part in linear.items() if part.in_features % WIDTH == 0 and part.out_features % WIDTH == 0}
    condition = {"head.cond_embed.weight"} if name == "mar" else set()  # reads a condition, which happens to be as wide
    assert hidden == inner - condition and len(inner) < len(linear)


def step_of(module, config, gradients):
    optimizer = make_optimizer(module, config)
    for parameter, gradient in zip(module.parameters(), gradients):
        parameter.grad = gradient.clone()
    optimizer.step()
    return [p.detach().clone() for p in module.parameters()]


def gradient_of(shape, generator):
    """Random; a matrix's singular values go from 1 to 10, since five Newton-Schulz iterations do not lift those near 0."""
    gradient = torch.randn(shape, generator=generator)
    if gradient.dim() == 2:
        left, _, right = torch.linalg.svd(gradient, full_matrices=False)
        gradient = left @ torch.diag(torch.linspace(1, 10, min(shape))) @ right
    return gradient


@needs_muon
def test_a_step_moves_a_hidden_matrix_by_an_orthogonal_one_of_adamws_size_and_the_rest_as_adamw_does(generator):
    module = VelocityMLP(4, 32, 1, generator=generator)
    start = [p.detach().clone() for p in module.parameters()]
    gradients = [gradient_of(p.shape, generator) for p in module.parameters()]
    config = OptimConfig(lr=0.01, weight_decay=0.5)
    by_adamw = step_of(copy.deepcopy(module), config, gradients)
    by_muon = step_of(module, OptimConfig(name="muon", lr=0.01, weight_decay=0.5), gradients)
    hidden = {id(p) for p in hidden_matrices(module)}
    for parameter, before, adamw, muon in zip(module.parameters(), start, by_adamw, by_muon):
        if id(parameter) not in hidden:
            assert torch.equal(adamw, muon)
            continue
        moved = before * (1 - 0.01 * 0.5) - muon
        singular = torch.linalg.svdvals(moved) / (0.01 * 0.2 * max(before.shape) ** 0.5)
        assert 0.5 < singular.min() and singular.max() < 1.4  # the iterations reach no closer
    assert len(hidden) == 5


@needs_muon
def test_vectors_and_what_is_exempt_do_not_decay_under_muon_either():
    class Exempting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
            self.no_decay = list(self.head.parameters())

    module = Exempting()
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = make_optimizer(module, OptimConfig(name="muon", lr=0.1, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, kept[name] * (0.95 if name == "body.weight" else 1.0))


def muon_run(folder, steps=12):
    """The small run's loop under Muon, of which ``steps`` are made."""
    objective, config = Denoise(), small_config()
    optim = OptimConfig(name="muon", lr=0.01, warmup_steps=4, weight_decay=0.01)
    loop = TrainingLoop(objective, objective.net, config, optim, World(), folder, progress=False)

    def stop(output, done):
        if done == steps:
            raise KeyboardInterrupt
        return {}

    try:
        loop.run(training_batches(Points(), config, World(), loop.step), after_optimizer_step=stop)
    except KeyboardInterrupt:
        pass
    return loop


@needs_muon
def test_a_run_under_muon_that_stops_goes_on_bit_for_bit(tmp_path):
    whole = muon_run(tmp_path / "whole")
    muon_run(tmp_path / "parts", steps=5)
    resumed = muon_run(tmp_path / "parts")
    assert resumed.objective.seen and len(resumed.objective.seen) < len(whole.objective.seen)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for part, optimizer in whole.optimizer.parts.items():
        moments = [state for entry in optimizer.state_dict()["state"].values() for state in entry.values()]
        again = resumed.optimizer.parts[part].state_dict()["state"].values()
        assert moments and all(
            torch.equal(a, b) for a, b in zip(moments, (s for entry in again for s in entry.values()))
        )


@needs_muon
def test_the_state_of_another_optimiser_is_refused():
    optimizer = make_optimizer(nn.Linear(3, 3), OptimConfig(name="muon"))
    with pytest.raises(ValueError, match="not of muon, adamw"):
        optimizer.load_state_dict(make_optimizer(nn.Linear(3, 3), OptimConfig()).state_dict())


def test_a_pytorch_without_muon_is_said_in_a_line(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(UserError, match="optim.name=muon needs PyTorch 2.9"):
        make_optimizer(nn.Linear(3, 3), OptimConfig(name="muon"))
