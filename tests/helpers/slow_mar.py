"""A small MAR, and sampling from it the slow way: one sample, token by token, each velocity on its own."""

import math

import torch

from mar.model import MAR, MARConfig
from mar.sampler import SamplerConfig, known_after_steps

TOKENS, CHANNELS, CLASSES = 5, 3, 4
LABELS, SEEDS = torch.tensor([0, 1, 2, 3, 0, 1]), [11, 12, 13, 14, 15, 16]


def small_mar(**options) -> MAR:
    """With weights far from their first ones."""
    sizes = {"width": 16, "encoder_depth": 1, "decoder_depth": 1, "heads": 2, "buffer_tokens": 2}
    config = MARConfig(**sizes | {"head_width": 12, "head_depth": 1} | options)
    model = config.build(TOKENS, CHANNELS, CLASSES).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return model


def settings(**options) -> SamplerConfig:
    return SamplerConfig(**{"ar_steps": 3, "head_steps": 4, **options})


def slowly(model: MAR, label: int, seed: int, cfg: float | None, config: SamplerConfig, context=None) -> torch.Tensor:
    """In Euler steps, or with the model's flow map; without guidance where ``cfg`` is None.

    ``context(label)`` gives a function of latents, known and wanted positions that returns conditions; without it, they are the model's.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(TOKENS, generator=generator).tolist()
    noise = torch.randn(TOKENS, CHANNELS, generator=generator) * config.temperature
    latents, known = torch.zeros(1, TOKENS, CHANNELS), 0
    conditions_of = {of: (context or plain_context(model))(of) for of in (label, CLASSES)}
    for known_next in known_after_steps(TOKENS, min(TOKENS, config.ar_steps)):
        scale = 1 if cfg is None else cfg if config.cfg_schedule == "constant" else 1 + (cfg - 1) * known_next / TOKENS
        conds = {of: step(latents, order[:known], order[known:known_next]) for of, step in conditions_of.items()}
        for number, position in enumerate(order[known:known_next]):
            guided, unguided = conds[label][number], None if cfg is None else conds[CLASSES][number]
            draw = map_token if config.head == "map" else flow_token
            latents[0, position] = draw(model, noise[position], guided, unguided, scale, known, config)
        known = known_next
    return latents[0]


def plain_context(model: MAR):
    """Everything computed anew."""

    def of_label(label):
        def conditions(latents, known, wanted):
            positions = torch.tensor([known], dtype=torch.long), torch.tensor([wanted])
            return model.condition(latents, torch.tensor([label]), *positions)[0]

        return conditions

    return of_label


def flow_token(model, x, guided, unguided, scale, known, config):
    steps = evaluations(config, known)
    for step in range(steps):
        t = step / steps
        v = model.head(x, t, guided)
        if unguided is not None and config.cfg_interval[0] <= t <= config.cfg_interval[1]:
            other = model.head(x, t, unguided)
            ratio = ((v - other) ** 2).sum() / (other**2).sum()
            v = other + (1 + (scale - 1) * math.exp(-config.cfg_damping * ratio)) * (v - other)
        x = x + v / steps
    return x


def map_token(model, x, guided, unguided, scale, known, config):
    jumps = evaluations(config, known)
    for jump in range(jumps):
        s, t = torch.tensor(jump / jumps), torch.tensor((jump + 1) / jumps)
        x = model.flow_map(x, s, t, model.flow_map.embed_guided(guided, unguided, scale=scale))
    return x


def evaluations(config, known):
    if not config.head_evaluations:
        return config.head_steps
    first, last = config.head_evaluations, config.head_evaluations_last or config.head_evaluations
    exact = first * (TOKENS - known) + last * known  # in T-ths of an evaluation
    return (2 * exact + TOKENS) // (2 * TOKENS)
