import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.training.randomness import StepRandom
from mar.distil_stage import shown_images
from mar.distillation import DistilConfig, HeadDistillation, draw_jumps
from slow_mar import CHANNELS, CLASSES, TOKENS, small_mar

STEPS = 6


def batch(images: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(images, TOKENS, CHANNELS, generator=generator)
    return {"latents": latents, "label": torch.arange(images) % CLASSES}


def objective(model=None, **options) -> HeadDistillation:
    config = DistilConfig(**{"solver_steps": STEPS, "jumps": 3, **options})
    return HeadDistillation(model or small_mar(), LatentNormaliser(CHANNELS), config)


def slow_solution(model, noise, cond, uncond, scale, solver):
    """All states of one token, in Euler's or Heun's steps."""

    def velocity(x, t):
        conditional, unconditional = model.head(x, t, cond), model.head(x, t, uncond)
        return unconditional + scale * (conditional - unconditional)

    states, x = [noise], noise
    for step in range(STEPS):
        v = velocity(x, step / STEPS)
        if solver == "heun":
            v = (v + velocity(x + v / STEPS, (step + 1) / STEPS)) / 2
        x = x + v / STEPS
        states.append(x)
    return torch.stack(states)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_solutions_are_those_of_the_guided_head_under_the_conditions_of_cached_latents(solver):
    distillation, random = objective(solver=solver), StepRandom(0, 7)
    model, data = distillation.model, batch(4)
    found = distillation.solve(data, random)
    count = found.states.shape[1]
    order = random.uniform("order", 4, TOKENS).argsort(dim=1)
    noise = random.normal("noise", 4, count, CHANNELS)
    assert found.scale.min() >= 1 and found.scale.max() <= 4
    for image in range(4):
        known, wanted = order[image : image + 1, count:], order[image : image + 1, :count]
        halves = [data["label"][image : image + 1], torch.tensor([CLASSES])]
        cond, uncond = (model.condition(data["latents"][image : image + 1], of, known, wanted)[0] for of in halves)
        torch.testing.assert_close(found.cond[image], cond, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.uncond[image], uncond, rtol=1e-4, atol=1e-5)
        for token in range(count):
            expected = slow_solution(
                model, noise[image, token], cond[token], uncond[token], found.scale[image].item(), solver
            )
            torch.testing.assert_close(found.states[image, token], expected, rtol=1e-4, atol=1e-4)


def test_every_number_of_known_tokens_comes_in_training():
    distillation = objective(solver_steps=1)
    counts = {distillation.solve(batch(1), StepRandom(0, step)).states.shape[1] for step in range(60)}
    assert counts == set(range(1, TOKENS + 1))


def test_the_loss_is_the_squared_error_of_the_mean_velocity_over_random_jumps():
    distillation, random = objective(), StepRandom(0, 7)
    with torch.no_grad():
        for parameter in distillation.flow_map.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        loss = distillation(batch(4), random).loss
        solutions, flow_map = distillation.solve(batch(4), random), distillation.flow_map
        images, count = solutions.states.shape[:2]
        start, end = draw_jumps(distillation.config, random.uniform("jumps", images, count, 3, 4))
        errors = []
        for image in range(images):
            for token in range(count):
                for i, j in zip(start[image, token].tolist(), end[image, token].tolist()):
                    state, of = solutions.states[image, token], (image, token)
                    embedded = flow_map.embed_guided(
                        solutions.cond[of], solutions.uncond[of], scale=solutions.scale[image].item()
                    )
                    s, t = torch.tensor(i / STEPS), torch.tensor(j / STEPS)
                    jumped = flow_map(state[i], s, t, embedded)
                    errors.append(((jumped - state[j]) / (t - s)).square().mean())
        torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)


def test_the_loss_is_0_where_the_flow_has_one_velocity_everywhere():
    model = small_mar()
    model.head.output.linear.weight.zero_()  # the bias is left: every solution is a straight line, which a new map follows
    distillation, data, random = objective(model), batch(4), StepRandom(0, 1)
    assert distillation(data, random).loss < 1e-10
    assert max(distillation.errors(data, random).values()) < 1e-5
    assert objective()(data, random).loss > 1e-3


@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_jumps_go_forward_between_two_steps_of_the_solver(steps, from_noise, to_data, seed):
    config = DistilConfig(solver_steps=steps, from_noise=from_noise, to_data=to_data)
    start, end = draw_jumps(config, torch.rand(50, 4, generator=torch.Generator().manual_seed(seed)))
    assert (start >= 0).all() and (start < end).all() and (end <= steps).all()


def test_shares_of_jumps_start_at_noise_and_end_at_data_and_all_others_occur():
    uniform = torch.rand(100_000, 4, generator=torch.Generator().manual_seed(0))
    start, end = draw_jumps(DistilConfig(solver_steps=4, from_noise=0.4, to_data=0.25), uniform)
    at_noise = 0.4 + 0.6 / 4
    assert abs((start == 0).float().mean() - at_noise) < 0.01
    # Behind a start at step i, the 4 - i ends are equally frequent but for the share at data.
    reaches = sum((at_noise if i == 0 else 0.15) * (0.25 + 0.75 / (4 - i)) for i in range(4))
    assert abs((end == 4).float().mean() - reaches) < 0.01
    assert {(i, j) for i, j in zip(start.tolist(), end.tolist())} == {(i, j) for i in range(4) for j in range(i + 1, 5)}
    whole, _ = draw_jumps(DistilConfig(solver_steps=4, from_noise=1.0), uniform)
    assert not whole.any()


def test_the_generator_stays_as_it_is_and_without_dropout_while_the_map_trains():
    distillation, random = objective(small_mar(dropout=0.5)), StepRandom(0, 2)
    before = {name: value.clone() for name, value in distillation.model.state_dict().items()}
    losses = [distillation.train(mode)(batch(4), random).loss for mode in (True, False)]
    assert torch.equal(*losses)
    losses[0].backward()
    trained = {name for name, p in distillation.named_parameters() if p.requires_grad}
    assert trained == {f"flow_map.{name}" for name, _ in distillation.flow_map.named_parameters()}
    assert all(p.grad is not None for p in distillation.flow_map.parameters())
    torch.optim.SGD(distillation.flow_map.parameters(), lr=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in distillation.model.state_dict().items())


def test_two_halves_of_a_batch_have_the_mean_loss_of_the_whole():
    distillation, data = objective(), batch(6)
    with torch.no_grad():
        whole = distillation(data, StepRandom(0, 5)).loss
        halves = [
            distillation({name: value[3 * slot :][:3] for name, value in data.items()}, StepRandom(0, 5, slot, 2)).loss
            for slot in range(2)
        ]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole, rtol=1e-5, atol=1e-7)


def test_training_brings_one_evaluation_nearer_to_the_solver_than_its_own_steps_are():
    torch.manual_seed(0)
    distillation, data = objective(jumps=8), batch(24)
    first = distillation.errors(data, StepRandom(9, 0))
    optimizer = torch.optim.Adam(distillation.flow_map.parameters(), lr=5e-3)
    for step in range(60):
        optimizer.zero_grad()
        distillation(data, StepRandom(0, step)).loss.backward()
        optimizer.step()
    last = distillation.errors(data, StepRandom(9, 0))
    assert last["error_of_1"] < 0.5 * first["error_of_1"]


@pytest.mark.parametrize(
    "values",
    [
        {"guidance": (1.5, 3.0)},
        {"guidance": (-1.0, 3.0)},
        {"guidance": (0.5, 0.9)},
        {"solver_steps": 0},
        {"jumps": 0},
        {"from_noise": 1.1},
        {"to_data": -0.1},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ValueError):
        DistilConfig(**values)


@pytest.mark.parametrize("count, wanted", [(3, [0, 1, 2]), (6400, [0, 101, 203])])
def test_errors_are_of_images_from_the_whole_cache_which_may_be_in_the_order_of_classes(count, wanted):
    class Cache:
        def __len__(self):
            return count

        def batch(self, keys):
            return {"label": torch.tensor([key.index for key in keys])}

    shown = shown_images(Cache())["label"].tolist()
    assert shown[:3] == wanted and shown[-1] == count - 1 and len(set(shown)) == min(count, 64)
