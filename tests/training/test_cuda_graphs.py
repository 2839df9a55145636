"""What is recorded and replayed gives the gradients of what is called, whatever is called between. A double stands in for graphs on a CPU."""

import copy
from itertools import repeat

import pytest
import torch
from torch import nn

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.training.config import TrainConfig
from flowprior.training.cuda_graphs import GraphedParts, Recording
from flowprior.training.loop import TrainingLoop
from scripts.gpu_check.subjects import SUBJECTS

STEPS = 4
# Of these presets' objectives: the divergence asks the prior without gradients, the autoencoder takes times from a grid, and MAR leaves out what is
# not read.
NOT_REPLAYED = {"distribution alignment": 1, "autoencoder": 1, "MAR": 1}
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class Double(Recording):
    """Runs on a CPU in the room that a CUDA graph has: every pass writes its outputs, and what its gradients are made of, over the last one's."""

    made = 0

    def _record(self):
        type(self).made += 1
        self._run()
        self.output_gradients = [torch.empty_like(output) for output in self.outputs]
        self._differentiate()
        self.fixed = [[output.detach() for output in self.outputs], [g for g in self.gradients if g is not None]]

    def _replay_forward(self):
        with torch.enable_grad():
            self._run()
        self._write(0, self.outputs)

    def _replay_backward(self):
        self._differentiate()
        self._write(1, [g for g in self.gradients if g is not None])

    def _write(self, number, tensors):
        for room, tensor in zip(self.fixed[number], tensors):
            room.copy_(tensor.detach())


class Objective(nn.Module):
    """Two parts, one of which may be called twice; a loss with a gradient asked for on the way."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.replayed_parts = [self.first, self.second]

    def forward(self, x, twice=False, term=False):
        h = self.first(x).tanh()
        out = self.second(h).square().mean()
        if twice:
            out = out + self.second(h.sin()).square().mean()
        if term:
            [pull] = torch.autograd.grad(out, h, retain_graph=True)
            out = out * (1 + pull.detach().square().mean())
        return out


def both(generator, *calls):
    """Gradients of an objective's parameters and inputs after these calls, as usual and replayed."""
    torch.manual_seed(0)
    usual = Objective()
    replayed = copy.deepcopy(usual)
    replayed.replayed_parts = [replayed.first, replayed.second]
    graphs = GraphedParts(replayed, Double)
    found = []
    xs = [torch.randn(5 + i % 2, 3, generator=generator) for i in range(len(calls))]
    for objective in (usual, replayed):
        inputs = [x.clone().requires_grad_() for x in xs]
        for x, words in zip(inputs, calls):
            if objective is replayed:
                with graphs.replaying():
                    objective(x, **words).backward()
            else:
                objective(x, **words).backward()
        found.append([x.grad for x in inputs] + [p.grad for p in objective.parameters()])
    return found


@pytest.mark.parametrize("words", [{}, {"twice": True}, {"term": True}, {"twice": True, "term": True}], ids=str)
def test_gradients_accumulate_over_passes_as_they_do_without_replays(words, generator):
    usual, replayed = both(generator, *repeat(words, 5))
    for one, other in zip(usual, replayed, strict=True):
        torch.testing.assert_close(other, one)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_trainer_s_steps_are_those_without_replays(name):
    def weights(replay):
        subject = SUBJECTS[name](True, torch.device("cpu"), False)
        world, config = World(), TrainConfig(steps=STEPS, global_batch=2, log_steps=2, tensorboard=False)
        loop = TrainingLoop(subject.objective, subject.objective, config, subject.optim, world, progress=False)
        if replay:
            graphs = GraphedParts(subject.objective, Double)
            assert graphs.parts
            loop.replaying = graphs.replaying
        loop.run(repeat(subject.batch, STEPS))
        if replay:
            assert sum(not part.recordings for part in graphs.parts) == NOT_REPLAYED.get(name, 0)
            assert all("forward" not in vars(part.module) for part in graphs.parts)
        return {n: p.detach().clone() for n, p in subject.objective.named_parameters() if p.requires_grad}

    usual, replayed = weights(False), weights(True)
    for each in usual:
        torch.testing.assert_close(replayed[each], usual[each], msg=lambda text, each=each: f"{each}: {text}")


def test_what_cannot_be_replayed_is_called_as_usual(generator):
    objective = nn.Module()
    objective.linear = nn.Linear(2, 2)
    objective.replayed_parts = [objective.linear]
    graphs = GraphedParts(objective, Double)
    [part] = graphs.parts
    x = torch.randn(3, 2, generator=generator)
    with graphs.replaying():
        with torch.no_grad():
            objective.linear(x)
        objective.linear(input=x)
        assert not part.recordings
        objective.linear(x)
        assert len(part.recordings) == 1
        objective.linear(x[:2])
        assert len(part.recordings) == 2
    with graphs.replaying():
        objective.linear(x)
    assert len(part.recordings) == 2
    assert objective.linear(x).grad_fn.name() != "_ReplayBackward"


def test_the_gradients_of_an_overwritten_pass_are_refused(generator):
    objective = Objective()
    graphs = GraphedParts(objective, Double)
    x = torch.randn(5, 3, generator=generator)
    with graphs.replaying():
        first = objective(x)
    with graphs.replaying():
        objective(x).backward()
        with pytest.raises(RuntimeError, match="overwritten"):
            first.backward()


def test_networks_that_compute_their_activations_twice_are_refused():
    objective = Objective()
    objective.second.recompute = True
    with pytest.raises(UserError, match="cuda_graphs=false"):
        GraphedParts(objective)


def test_graphs_of_what_is_compiled_are_refused():
    with pytest.raises(ValueError, match="write cuda_graphs=false, or compile=false"):
        TrainConfig(compile=True, cuda_graphs=True)


def test_on_a_cpu_the_option_changes_nothing():
    def weights(cuda_graphs):
        subject = SUBJECTS["SiT"](True, torch.device("cpu"), False)
        config = TrainConfig(steps=2, global_batch=2, tensorboard=False, cuda_graphs=cuda_graphs)
        loop = TrainingLoop(subject.objective, subject.objective, config, subject.optim, World(), progress=False)
        loop.run(repeat(subject.batch, 2))
        return list(subject.objective.parameters())

    assert all(torch.equal(one, other) for one, other in zip(weights(False), weights(True), strict=True))


@NEEDS_GPU
@pytest.mark.parametrize("bf16", [False, True])
def test_on_a_gpu_replays_give_the_gradients_and_the_dropout_of_calls(bf16):
    torch.manual_seed(0)
    usual = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2)).cuda()
    replayed = copy.deepcopy(usual)
    usual.replayed_parts, replayed.replayed_parts = [], [replayed]
    steps = {}
    for objective in (usual, replayed):
        graphs = GraphedParts(objective)
        for step in range(6):
            x = torch.randn(5 + step % 2, 6, generator=torch.Generator().manual_seed(step)).cuda().requires_grad_()
            torch.cuda.manual_seed(step)
            with graphs.replaying():
                with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                    output = objective(x)
                output.float().square().mean().backward()
            after = torch.rand(1, device="cuda")  # what is drawn next is the same as well
            steps.setdefault(step, []).append(
                [x.grad, output.detach(), after, *(p.grad for p in objective.parameters())]
            )
            objective.zero_grad()
    for one, other in steps.values():
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)
