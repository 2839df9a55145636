import pytest
import torch

from flowprior import VelocityMLP
from flowprior.flow.velocity import time_features
from networks import random_velocity


@pytest.mark.parametrize("cond_channels, count", [(0, 34_978_848), (768, 35_766_304)])
def test_at_the_papers_sizes_it_has_the_papers_number_of_parameters(cond_channels, count):
    with torch.device("meta"):
        network = VelocityMLP(32, 1024, 6, cond_channels)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("cond_channels", [0, 5])
def test_a_fresh_network_is_zero_everywhere(cond_channels, generator):
    network = VelocityMLP(4, 16, 2, cond_channels)
    cond = torch.randn(6, 5, generator=generator) if cond_channels else None
    assert not network(torch.randn(6, 4, generator=generator), torch.rand(6, generator=generator), cond).any()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (5, 7), (2, 1, 1), (2, 5, 1), (1, 5, 7)])
def test_a_time_that_broadcasts_equals_the_same_time_given_to_every_token(shape, generator):
    network = random_velocity()
    x, t = torch.randn(2, 5, 7, 3, generator=generator), torch.rand(shape, generator=generator)
    torch.testing.assert_close(network(x, t), network(x, t.expand(2, 5, 7)), rtol=1e-5, atol=1e-5)


def test_a_token_has_the_velocity_that_it_has_alone(generator):
    network = random_velocity(cond_channels=4)
    x, cond = torch.randn(2, 3, 3, generator=generator), torch.randn(2, 3, 4, generator=generator)
    t = torch.rand(2, 1, generator=generator)
    together = network(x, t, cond)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(
                together[i, j], network(x[i, j], t[i, 0].item(), cond[i, j]), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("shape", [(), (4, 1, 1), (4, 3, 1), (4, 3, 5)])
def test_modulations_are_computed_once_per_element_of_the_time(shape, generator):
    network, rows = random_velocity(depth=2), []
    layers = [block.modulation[-1] for block in network.blocks] + [network.output.modulation[-1], network.time_embed[0]]
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[:-1].numel()))
    network(torch.randn(4, 3, 5, 3, generator=generator), torch.rand(shape, generator=generator))
    assert rows == [torch.Size(shape).numel()] * len(layers)


def test_neighbouring_times_are_told_apart_and_equal_ones_are_not():
    features = time_features(torch.linspace(0, 1, 1001))
    assert (features[1:] - features[:-1]).norm(dim=-1).min() > 0.1
    assert torch.equal(time_features(torch.tensor(0.25)), features[250])


def test_time_features_stay_in_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert time_features(torch.rand(3, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_condition_that_is_missing_or_not_wanted_is_refused():
    with pytest.raises(ValueError, match="cond is missing"):
        random_velocity(cond_channels=2)(torch.zeros(1, 3), 0.5)
    with pytest.raises(ValueError, match="unconditional"):
        random_velocity()(torch.zeros(1, 3), 0.5, torch.zeros(1, 2))


def test_its_generator_decides_its_weights_and_the_global_one_decides_nothing():
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(VelocityMLP(3, 8, 1, generator=torch.Generator().manual_seed(5)).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])


def test_it_can_be_built_again_from_its_sizes():
    network = random_velocity(cond_channels=4)
    again = VelocityMLP(**network.sizes)
    again.load_state_dict(network.state_dict())
    x, cond = torch.ones(2, 3), torch.ones(2, 4)
    assert torch.equal(network(x, 0.3, cond), again(x, 0.3, cond))
