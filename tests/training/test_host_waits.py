"""In a training step the host waits for the device once, to hear whether everything is finite; once more for a network with a step of its own."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowprior.distributed import World
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from scripts.gpu_check.subjects import SUBJECTS

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.unique_consecutive}
OWN_STEPS = {"autoencoder": 1}  # the discriminator's
STEPS = 3


class Waits(TorchDispatchMode):
    """Counts what would make the host wait on a GPU. Scalars in float64 are drawn on the host: no device holds any."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket in WAITS and args[0].dtype != torch.float64
        return function(*args, **(kwargs or {}))


def waits_of_steps(name: str, device: str, counted) -> list[int]:
    """How often the host waits in each step but the first, in which what is kept for many is computed."""
    subject = SUBJECTS[name](True, torch.device(device), False)
    config = TrainConfig(steps=STEPS, global_batch=2, log_steps=10**6, tensorboard=False)
    world = World(device=torch.device(device))
    objective = subject.objective.to(device)
    loop = TrainingLoop(objective, objective, config, subject.optim, world, progress=False)
    step, found = loop.train_step, []

    def train_step(stream):
        output, waits = counted(lambda: step(stream))
        found.append(waits)
        return output

    loop.train_step = train_step
    pin = device == "cuda"
    loop.run({key: value.pin_memory() if pin else value for key, value in subject.batch.items()} for _ in range(STEPS))
    assert len(found) == STEPS
    return found[1:]


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_step_waits_once_by_what_would_make_a_gpu_wait(name):
    def counted(step):
        with Waits() as waits:
            return step(), waits.count

    assert waits_of_steps(name, "cpu", counted) == [1 + OWN_STEPS.get(name, 0)] * (STEPS - 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_step_waits_once_on_a_gpu(name):
    def counted(step):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                output = step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return output, sum("synchronizing CUDA operation" in str(warning.message) for warning in said)

    assert waits_of_steps(name, "cuda", counted) == [1 + OWN_STEPS.get(name, 0)] * (STEPS - 1)
