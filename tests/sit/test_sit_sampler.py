import pytest
import torch

from plain_sit import random_sit, velocity
from sit.model import SiT
from sit.sampler import GuidedVelocity, SamplerConfig, sample_latents, time_grid

TOKENS, CHANNELS, CLASSES = 5, 3, 4
LABELS, SEEDS = torch.tensor([0, 1, 2, 3, 0]), [11, 12, 13, 14, 15]
SOLVERS = ["euler", "heun", "midpoint", "ab2", "dopri5", "sde"]


@pytest.fixture(scope="module")
def model() -> SiT:
    return random_sit(smooth=True).requires_grad_(False)


def settings(**options) -> SamplerConfig:
    return SamplerConfig(**{"solver": "euler", "steps": 4, **options})


def draw(model: SiT, cfg: float, config: SamplerConfig, rows=slice(None)) -> torch.Tensor:
    return sample_latents(model, LABELS[rows], SEEDS[rows], cfg, config)


def slowly(model: SiT, label: int, seed: int, cfg: float | None, config: SamplerConfig) -> torch.Tensor:
    """One sample by the plain network, step by step, the guided and the unguided velocity each on its own."""
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return torch.randn(TOKENS, CHANNELS, generator=generator).double()

    def v(x, t):
        given = velocity(model, x, t, label)
        if cfg is None or not config.cfg_interval[0] <= t <= config.cfg_interval[1]:
            return given
        without = velocity(model, x, t, CLASSES)
        return without + cfg * (given - without)

    factor, sde = float(config.time_shift or model.config.time_shift), config.solver == "sde"
    steps = config.steps - sde
    noisiness = [1 - step / steps for step in range(steps + 1)]
    times = [1 - factor * s / (1 + (factor - 1) * s) for s in noisiness]
    x, end = noise(), 1 - config.last_step if sde else 1.0
    for t, t_next in zip(times, times[1:]):
        t, t_next = end * t, end * t_next
        h, slope = t_next - t, v(x, t)
        if sde:
            w = config.diffusion_scale * (1 - t)
            mean_of_noise = x - t * slope
            x = x + h * (slope - w / 2 * mean_of_noise / (1 - t)) + (w * h) ** 0.5 * noise()
        elif config.solver == "heun":
            x = x + h / 2 * (slope + v(x + h * slope, t_next))
        else:
            x = x + h * slope
    return (x + config.last_step * v(x, end) if sde else x).float()


@pytest.mark.parametrize(
    "cfg, options",
    [
        (2.5, {}),
        (0.0, {"solver": "heun"}),
        (3.0, {"cfg_interval": (0.0, 0.5)}),
        (3.0, {"solver": "heun", "cfg_interval": (0.25, 0.6), "steps": 5}),
        (3.0, {"cfg_interval": (0.6, 0.7)}),
        (1.5, {"time_shift": "3", "steps": 6}),
        (1.5, {"solver": "sde", "steps": 6}),
        (2.0, {"solver": "sde", "time_shift": "0.4", "diffusion_scale": 0.7, "last_step": 0.1}),
    ],
)
@pytest.mark.parametrize("one_batch", [True, False])
def test_samples_are_those_of_the_slow_sampler(model, cfg, options, one_batch):
    config = settings(one_batch=one_batch, **options)
    expected = torch.stack([slowly(model, label, seed, cfg, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(draw(model, cfg, config), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"block": "lightning"}, {"prediction": "data"}, {"time_shift": "2"}])
def test_so_are_those_of_every_kind_of_network(options):
    model, config = random_sit(smooth=True, **options), settings(solver="heun")
    expected = torch.stack([slowly(model, label, seed, 2.0, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(draw(model, 2.0, config), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_guidance_of_one_is_no_guidance(model, solver):
    config, rows = settings(solver=solver, rtol=1e-5), rows_evaluated(model)
    unguided = draw(model, 1.0, config)
    assert rows() % len(LABELS) == 0, "no half without the class is evaluated"
    torch.testing.assert_close(draw(model, 1 + 1e-6, config), unguided, rtol=1e-3, atol=1e-3)
    if solver == "euler":
        expected = [slowly(model, label, seed, None, config) for label, seed in zip(LABELS.tolist(), SEEDS)]
        torch.testing.assert_close(unguided, torch.stack(expected), rtol=1e-3, atol=1e-4)


def rows_evaluated(model):
    """Counts the rows that the network is given from here on; the returned function says how many and stops."""
    rows = []
    hook = model.embed.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))

    def count() -> int:
        hook.remove()
        return sum(rows)

    return count


@pytest.mark.parametrize("interval, guided", [((0.0, 1.0), 8), ((0.0, 0.75), 7), ((0.3, 0.5), 2), ((0.9, 1.0), 0)])
def test_outside_its_interval_the_half_without_the_class_is_spared(model, interval, guided):
    rows = rows_evaluated(model)
    draw(model, 3.0, settings(steps=8, cfg_interval=interval))
    assert rows() == len(LABELS) * (8 + guided)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("one_batch", [True, False])
def test_samples_may_be_at_different_times(model, one_batch, guided):
    rows, times = torch.tensor([0, 1, 1, 4, 3]), torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    x = torch.randn(5, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(0))
    v = GuidedVelocity(model, LABELS, 3.0, one_batch)
    alone = [v(x[i : i + 1], t, rows[i : i + 1], guided=guided) for i, t in enumerate(times.tolist())]
    torch.testing.assert_close(v(x, times, rows, guided=guided), torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_depends_on_its_seed_label_and_guidance_alone(model, solver, cfg):
    config = settings(solver=solver, cfg_interval=(0.1, 0.8), rtol=1e-4, atol=1e-4)
    whole = draw(model, cfg, config)
    torch.manual_seed(99)
    # Rounding decides over dopri5's steps, and so moves its samples within its tolerance.
    near = 2e-3 if solver == "dopri5" else 1e-4
    for batch in (1, 2):
        parts = [draw(model, cfg, config, slice(i, i + batch)) for i in range(0, 5, batch)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=near)
    other = sample_latents(model, LABELS[:2], [11, 99], cfg, config)
    torch.testing.assert_close(other[0], whole[0], rtol=0, atol=near)
    assert not torch.allclose(other[1], whole[1], atol=1e-2)
    assert not torch.allclose(sample_latents(model, LABELS[1:2], [11], cfg, config)[0], whole[0], atol=1e-2)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint", "ab2", "dopri5"])
@pytest.mark.parametrize("shift", ["1", "2"])
def test_all_solvers_of_the_ode_approach_one_sample_at_any_shift(model, solver, shift):
    exact = draw(model, 1.5, settings(steps=150, solver="midpoint"))
    finer = settings(steps=40, solver=solver, time_shift=shift, rtol=1e-4)
    coarser = settings(steps=10, solver=solver, time_shift=shift, rtol=1e-1, atol=1e-2)
    errors = [(draw(model, 1.5, config) - exact).abs().max() for config in (coarser, finer)]
    assert errors[1] < errors[0] / 2


def test_without_diffusion_the_sde_is_eulers_method(model):
    euler = settings(steps=25, time_shift="1")
    without = settings(steps=25, time_shift="1", solver="sde", diffusion_scale=0.0, last_step=1 / 25)
    torch.testing.assert_close(draw(model, 2.0, without), draw(model, 2.0, euler), rtol=1e-3, atol=1e-4)


def test_every_step_of_the_sde_but_the_last_has_noise_of_its_own_from_the_samples_seed(model):
    short, long = (draw(model, 1.0, settings(solver="sde", steps=steps)) for steps in (3, 6))
    smooth = [draw(model, 1.0, settings(solver="sde", steps=s, diffusion_scale=0.0)) for s in (3, 6)]
    assert ((short - smooth[0]).abs().amax((1, 2)) > 0.1).all() and ((long - smooth[1]).abs().amax((1, 2)) > 0.1).all()


def test_the_grid_of_times_is_even_but_for_the_shift():
    assert time_grid(4, 1.0) == [0, 0.25, 0.5, 0.75, 1]
    assert time_grid(2, 3.0) == pytest.approx([0, 0.25, 1])


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"solver": "sde", "steps": 1},
        {"rtol": 0.0},
        {"last_step": 1.0},
        {"diffusion_scale": -1.0},
        {"cfg_interval": (0.5, 0.1)},
        {"cfg_interval": (0.0, 1.1)},
        {"time_shift": "-2"},
    ],
)
def test_impossible_sampler_settings_are_refused(values):
    with pytest.raises(ValueError):
        SamplerConfig(**values)
