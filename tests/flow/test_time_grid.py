"""Alignment at times of a grid: plain alignment at those times, unbiased over the offset, and never by modulations that are out of date."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.flow.path import PathDraw
from flowprior.flow.time_grid import KeptModulations, TimeGrid
from networks import random_prior, random_velocity


def loss_and_gradient(prior, latents, *draw, **options):
    latents = latents.detach().requires_grad_()
    loss = prior.alignment_loss(latents, *draw, **options)
    return loss.detach(), torch.autograd.grad(loss, latents)[0]


@settings(max_examples=25)
@given(
    lead=st.sampled_from([(), (1,), (2, 3)]),
    pairs=st.integers(1, 3),
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
    count=st.integers(1, 9),
    offset=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 999),
)
def test_alignment_on_a_grid_is_plain_alignment_at_the_grids_times(lead, pairs, groups, size, count, offset, seed):
    generator, prior, grid = (
        torch.Generator().manual_seed(seed),
        random_prior(width=8, depth=1),
        TimeGrid(count, offset),
    )
    latents = torch.randn(*lead, groups * size, 3, generator=generator)
    noise = torch.randn(*lead, pairs, groups * size, 3, generator=generator)
    t = torch.rand(*lead, pairs, groups, generator=generator)
    snapped = grid.times(grid.strata(t))
    assert ((snapped * count - offset).round() == (t * count).floor()).all()
    plain = loss_and_gradient(prior, latents, PathDraw(noise, snapped))
    on_grid = loss_and_gradient(prior, latents, PathDraw(noise, t), grid=grid)
    torch.testing.assert_close(on_grid, plain, rtol=1e-4, atol=1e-5)


def test_a_grid_leaves_the_draws_of_the_generator_as_they_are(generator):
    prior, latents = random_prior(), torch.randn(2, 4, 3, generator=generator)
    plain, fine = (
        prior.alignment_loss(latents, generator=torch.Generator().manual_seed(5), grid=grid).item()
        for grid in (None, TimeGrid(100_000))
    )
    assert fine == pytest.approx(plain, rel=1e-3)
    one = prior.alignment_loss(latents[0, 0], generator=torch.Generator().manual_seed(5), grid=TimeGrid(7))
    again = prior.alignment_loss(latents[0, :1], generator=torch.Generator().manual_seed(5), grid=TimeGrid(7))
    assert one == again


@pytest.mark.parametrize("count", [1, 4])
def test_over_all_offsets_the_expectation_is_that_of_continuous_times_and_at_one_offset_it_is_not(count, generator):
    prior, latents = random_prior(width=8, depth=1), torch.randn(1, 3, generator=generator)
    noise, fine = torch.randn(1, 1, 3, generator=generator), 256

    def mean(grid, times):
        rows = [loss_and_gradient(prior, latents, PathDraw(noise, t.view(1, 1)), grid=grid) for t in times]
        return torch.cat([torch.stack([row[0] for row in rows]).mean().view(1), sum(r[1] for r in rows)[0] / len(rows)])

    continuous = mean(None, (torch.arange(fine) + 0.5) / fine)
    strata, offsets = (torch.arange(count) + 0.5) / count, [(j + 0.5) / (fine // count) for j in range(fine // count)]
    on_grids = torch.stack([mean(TimeGrid(count, offset), strata) for offset in offsets])
    torch.testing.assert_close(on_grids.mean(0), continuous, rtol=1e-3, atol=1e-4)
    assert (on_grids - continuous).abs().amax() > 0.05 * continuous.abs().max()


def test_the_gradients_variance_is_no_higher_than_without_a_grid(generator):
    prior, latents, repeats = random_prior(width=8, depth=1), torch.randn(4, 3, generator=generator), 400
    many = latents.expand(64, 4, 3)
    variances = []
    for gridded in (False, True):
        draws = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(repeats):
            grid = TimeGrid(64, torch.rand((), generator=draws).item()) if gridded else None
            rows.append(loss_and_gradient(prior, many, generator=draws, grid=grid)[1].sum(0))
        variances.append(torch.stack(rows).var(0).sum())
    # the sum of 12 sample variances of 400 normal draws has a relative error of about sqrt(2 / 400 / 12)
    assert variances[1] < variances[0] * (1 + 5 * 2**0.5 * (2 / repeats / 12) ** 0.5)


def test_modulations_are_computed_once_for_a_grid_and_not_for_every_token(generator):
    prior, rows = random_prior(depth=2), []
    prior.velocity.blocks[1].modulation[-1].register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    for grid in (TimeGrid(6), TimeGrid(6), TimeGrid(6), TimeGrid(6, 0.1), TimeGrid(6, 0.1)):
        prior.alignment_loss(torch.randn(2, 4, 3, generator=generator), generator=generator, grid=grid)
    assert rows == [6, 6]


def load_others(prior):
    prior.load_state_dict(random_prior(seed=1).state_dict())


def load_by_assignment(prior):
    prior.load_state_dict(random_prior(seed=2).state_dict(), assign=True)
    prior.requires_grad_(False)


def one_weight_in_place(prior):
    with torch.no_grad():
        prior.velocity.blocks[0].modulation[-1].bias[0] += 1


def round_the_weights(prior):
    prior.bfloat16().float()


def another_network(prior):
    prior.velocity = random_velocity(seed=3).requires_grad_(False)


def move_and_return(prior):
    weights = {name: value.clone() for name, value in prior.state_dict().items()}
    prior.to("meta").to_empty(device="cpu")
    prior.load_state_dict({name: value + 0.1 for name, value in weights.items()})


CHANGES = [load_others, load_by_assignment, one_weight_in_place, round_the_weights, another_network, move_and_return]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3), st.sampled_from([0.5, 0.25]))
def test_what_is_kept_is_never_out_of_date(changes, offset):
    prior, grid = random_prior(), TimeGrid(5, offset)
    latents = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    for change in changes:
        prior.alignment_loss(latents, generator=torch.Generator().manual_seed(0), grid=grid)
        change(prior)
        fresh = copy.deepcopy(prior)
        fresh._kept = KeptModulations()
        found, expected = (
            loss_and_gradient(p, latents, generator=torch.Generator().manual_seed(0), grid=grid) for p in (prior, fresh)
        )
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_autocast_has_modulations_of_its_own_and_inference_mode_leaves_none_that_gradients_cannot_use(generator):
    prior, latents, kept = random_prior(), torch.randn(2, 4, 3, generator=generator), []
    for setting in (
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.autocast("cpu", enabled=False),
    ):
        with setting:
            prior.alignment_loss(latents, generator=generator, grid=TimeGrid(5))
            kept.append(prior._kept.of(prior.velocity, TimeGrid(5))[0])
    assert [rows.dtype for rows in kept] == [torch.float32, torch.bfloat16, torch.float32]
    assert loss_and_gradient(prior, latents, generator=generator, grid=TimeGrid(5))[1].abs().min() > 0


def test_a_copy_of_a_prior_keeps_its_own(generator):
    prior, latents = random_prior(), torch.randn(2, 4, 3, generator=generator)
    prior.alignment_loss(latents, generator=generator, grid=TimeGrid(5))
    other = copy.deepcopy(prior)
    one_weight_in_place(other)
    losses = [
        p.alignment_loss(latents, generator=torch.Generator().manual_seed(0), grid=TimeGrid(5)) for p in (prior, other)
    ]
    assert losses[0] != losses[1] and "_kept" not in "".join(prior.state_dict())


def test_a_network_that_is_trained_and_a_grid_without_times_are_refused(generator):
    prior = random_prior()
    prior.velocity.requires_grad_(True)
    with pytest.raises(ValueError, match="frozen"):
        prior.alignment_loss(torch.randn(4, 3, generator=generator), grid=TimeGrid(5))
    for count, offset in ((0, 0.5), (5, 1.0), (5, -0.1)):
        with pytest.raises(ValueError, match="at least 1 time"):
            TimeGrid(count, offset)
