"""What a training step costs, before it is paid: parameters of every part, arithmetic and memory, counted on the meta device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from flowprior.flow.online import OnlineFlow, SequenceVelocity
from flowprior.training.config import TrainConfig
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom
from tokenizer.objective import AutoencoderObjective
from tokenizer.regularisers.flow import FlowRegulariser

COUNTED_IMAGES = 4  # arithmetic and activations are proportional to the images


class StepCost(NamedTuple):
    """Per image, of a forward and a backward pass of everything that is trained."""

    flop: dict[str, float]  # by part
    activation_bytes: float  # float32, kept for the autoencoder's backward pass
    opening_flop: float  # what the first steps have besides


def parameter_counts(objective: AutoencoderObjective) -> dict[str, tuple[int, int]]:
    """``(trained, frozen)`` parameters of every part."""
    encoder, decoder, adversary = objective.autoencoder.encoder, objective.autoencoder.decoder, objective.adversary
    latent = [encoder.latent_tokens, decoder.latent_positions, decoder.mask_token]
    parts: dict[str, list[Tensor]] = {
        "encoder": list(encoder.vit.parameters()),
        "decoder": list(decoder.vit.parameters()),
        "latent tokens": latent,
        "projections": [p for m in (encoder.to_latent, decoder.from_latent, decoder.to_pixels) for p in m.parameters()],
        "latent maps": list(objective.autoencoder.latent_maps.parameters()),
        "perceptual": list(objective.perceptual.parameters()) if objective.perceptual else [],
        "discriminator": list(adversary.discriminator.parameters()) if adversary else [],
        "features": list(objective.features.parameters()) if objective.features else [],
    }
    parts |= {f"regulariser {r.name}": list(r.parameters()) for r in objective.regularisers}
    parts |= {
        f"online flow of {name}": list(flow.velocity.parameters()) for name, flow in online_flows(objective).items()
    }
    return {
        name: (sum(p.numel() for p in group if p.requires_grad), sum(p.numel() for p in group if not p.requires_grad))
        for name, group in parts.items()
        if group
    }


def online_flows(objective: AutoencoderObjective) -> dict[str, OnlineFlow]:
    """The networks of the latents themselves, by the regulariser that has one."""
    saved = {r.name: item for r in objective.regularisers for item in r.saved().values()}
    return {name: item for name, item in saved.items() if isinstance(item, OnlineFlow)}


def step_cost(objective: AutoencoderObjective, train: TrainConfig) -> StepCost:
    """Count one step, on the meta device, in which every term has its full weight."""
    device, last = objective.world.device, train.steps + 10**9
    size = objective.autoencoder.config.image_size
    batch = {
        "image": torch.empty(COUNTED_IMAGES, 3, size, size, dtype=torch.uint8, device=device),
        "label": torch.zeros(COUNTED_IMAGES, dtype=torch.long, device=device),
    }
    random, kept = StepRandom(0, last, device=device), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            kept[storage._cdata] = (storage.nbytes(), tensor)  # held, so that no other storage takes its address
        return tensor

    objective.log_steps = 0
    objective.train()(batch, random)  # what is computed once and kept for many steps is no part of one
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective(batch, random)
    with inputs_of_their_own(objective.regularisers), FlopCounterMode(display=False) as counter:
        output = objective(batch, random)
        output.loss.backward()
    flop: dict[str, float] = by_part(counter, objective)
    samples = output.samples
    if objective.adversary is not None:
        adversary = objective.adversary
        adversary.discriminator.train().trained.requires_grad_(True)
        with FlopCounterMode(display=False) as counter:
            losses = adversary.discriminator_terms(samples["images"], samples["reconstruction"], random)
            losses["discriminator"].backward()
        flop["discriminator, its own step"] = counter.get_total_flops()
    for name, online in online_flows(objective).items():
        flop[f"regulariser {name}, its own step"] = online.config.steps * online_flop(online, samples["latents"])
    activations = sum(size for size, _ in kept.values())
    opening = sum(opening_flop(regulariser, samples["latents"]) for regulariser in openings(objective))
    per_image = {name: count / COUNTED_IMAGES for name, count in flop.items()}
    return StepCost(per_image, activations / COUNTED_IMAGES, opening / COUNTED_IMAGES)


@contextlib.contextmanager
def inputs_of_their_own(modules: nn.Module) -> Iterator[None]:
    """Within, each of ``modules`` is called with copies of its inputs. PyTorch's counter takes a module for gone backward through once its
    input has its whole gradient: where other modules read the same latents, what comes in between would count as this one's."""
    inside = set(modules.modules())

    def copied(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        tensors = (x.clone() if isinstance(x, Tensor) and x.requires_grad else x for x in inputs)
        return tuple(tensors) if module in inside else inputs

    hook = register_module_forward_pre_hook(copied)  # one of all modules, as the counter's are, and before those
    try:
        yield
    finally:
        hook.remove()


def online_flop(online: OnlineFlow, latents: Tensor) -> int:
    """Arithmetic of a step of the flow that follows ``latents (B, n, C)``."""
    (images, tokens, channels), pairs = latents.shape, online.config.pairs
    size = online.group_size(tokens, online.config.group_size)
    x = latents.new_empty(images, pairs, tokens // size, size, channels)
    with FlopCounterMode(display=False) as counter:
        online.velocity(x, x.new_empty(images, pairs, tokens // size, 1)).sum().backward()
    return counter.get_total_flops()


def openings(objective: AutoencoderObjective) -> list[FlowRegulariser]:
    """Regularisers that have a term more in their first steps."""
    flows = [r for r in objective.regularisers if isinstance(r, FlowRegulariser)]
    return [regulariser for regulariser in flows if regulariser.config.opening_steps]


def opening_flop(regulariser: FlowRegulariser, latents: Tensor) -> int:
    """Arithmetic that the opening adds to a step on ``latents (B, n, C)``."""
    latents = latents.detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        regulariser.opening(latents, StepRandom(0, 0, device=latents.device)).backward()
    return counter.get_total_flops()


def by_part(counter: FlopCounterMode, objective: AutoencoderObjective) -> dict[str, float]:
    """The counter's total, split by the outermost modules that each part calls."""
    root = type(objective).__name__
    prefixes = {
        "encoder": f"{root}.autoencoder.encoder",
        "decoder": f"{root}.autoencoder.decoder",
        "perceptual": f"{root}.perceptual",
        "features": f"{root}.features",
        "latent maps": f"{root}.autoencoder.latent_maps",
    }
    prefixes |= {f"regulariser {r.name}": f"{root}.regularisers.{i}" for i, r in enumerate(objective.regularisers)}
    counts = {name: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    flop = {}
    for part, prefix in prefixes.items():
        inside = [name for name in counts if name == prefix or name.startswith(prefix + ".")]
        outermost = [n for n in inside if not any(n != other and n.startswith(other + ".") for other in inside)]
        if total := sum(counts[name] for name in outermost):
            flop[part] = total
    for name, online in online_flows(objective).items():  # no module of the objective: counted under its class
        own = type(online.velocity).__name__
        if isinstance(online.velocity, SequenceVelocity):
            own += ".correction"  # the prior, which it calls as well, is counted as the regulariser's
        flop[f"regulariser {name}"] += counts.get(own, 0)
    if objective.adversary is not None:
        flop["discriminator, for the autoencoder"] = counter.get_total_flops() - sum(flop.values())
    return flop


def describe_step(objective: AutoencoderObjective, train: TrainConfig, optim: OptimConfig) -> str:
    """Parameters, arithmetic and memory as lines of text."""
    counts, cost = parameter_counts(objective), step_cost(objective, train)
    lines = ["parameters"]
    lines += [f"  {name:<34} {trained:>13,} trained {frozen:>13,} frozen" for name, (trained, frozen) in counts.items()]
    trained, frozen = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    lines += [
        f"  {'all':<34} {trained:>13,} trained {frozen:>13,} frozen",
        "arithmetic, GFLOP per image, forward and backward",
    ]
    total = sum(cost.flop.values())
    lines += [
        f"  {name:<34} {_shown(count / 1e9):>13} {100 * count / total:>6.2f} %" for name, count in cost.flop.items()
    ]
    alignment = sum(cost.flop.get(name, 0.0) for name in ("regulariser flow", "regulariser flow, its own step"))
    lines += [
        f"  {'all':<34} {_shown(total / 1e9):>13}",
        f"a step of {train.global_batch} images: {_shown(total * train.global_batch / 1e12)} TFLOP",
    ]
    if alignment:
        lines.append(
            f"alignment adds {100 * alignment / (total - alignment):.2f} % to the rest of the step's arithmetic"
        )
    lines += [
        f"in the first {regulariser.config.opening_steps:,} steps its opening adds {100 * cost.opening_flop / total:.2f} % to a whole step"
        for regulariser in openings(objective)
    ]
    state = 4 * (trained * (4 + bool(optim.ema_decay)) + frozen)
    activations = cost.activation_bytes
    lines += [
        "memory, an estimate",
        f"  weights, gradients, AdamW{', average' if optim.ema_decay else ''}: {state / 1e9:.2f} GB in every process",
        f"  activations: {activations / 1e9:.2f} GB per image in float32, about half in bfloat16 (attention matrices included, which fused "
        f"attention does not keep); {activations * train.micro_batch(1) / 1e9:.1f} GB for a micro-batch of {train.micro_batch(1)} in one process",
    ]
    return "\n".join(lines)


def _shown(number: float) -> str:
    """One decimal from 10 on, three significant digits below."""
    return f"{number:,.1f}" if number >= 10 else f"{number:.3g}"
