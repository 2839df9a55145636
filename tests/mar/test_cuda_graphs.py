import pytest
import torch

from mar.cuda_graphs import Replayed

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def function(x, y):
    return (x @ y).sin()


def test_on_a_cpu_and_while_gradients_are_recorded_the_function_itself_is_called(generator):
    replayed, x, y = Replayed(function), torch.randn(3, 4, generator=generator), torch.randn(4, 2, generator=generator)
    assert torch.equal(replayed(x, y), function(x, y)) and not replayed.recordings
    replayed(x.requires_grad_(), y).sum().backward()
    assert x.grad.abs().sum() > 0


@NEEDS_GPU
@torch.no_grad()
def test_replays_give_what_the_function_gives_for_new_values_and_shapes_and_under_autocast():
    replayed, kept = Replayed(function), []
    for size in (3, 5, 3):
        for bf16 in (False, True):
            x, y = torch.randn(size, 4, device="cuda"), torch.randn(4, 2, device="cuda")
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                kept.append((replayed(x, y), function(x, y)))
    assert len(replayed.recordings) == 4
    for found, expected in kept:
        torch.testing.assert_close(found, expected)
