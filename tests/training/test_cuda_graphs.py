"""What is recorded and replayed gives the gradients of what is called, whatever is called between. A double stands in for graphs on a CPU."""

import contextlib
import copy
from itertools import repeat

import pytest
import torch
from torch import nn

from flowprior.distributed import World
from flowprior.precision import full_precision
from flowprior.training.config import TrainConfig
from flowprior.training.cuda_graphs import GraphedParts, Recording
from flowprior.training.loop import TrainingLoop
from flowprior.training.randomness import StepRandom
from scripts.gpu_check.subjects import SUBJECTS

STEPS = 4
# Of these presets' objectives: the divergence asks the prior without gradients, the autoencoder takes times from a grid, and MAR leaves out what is
# not read.
NOT_REPLAYED = {"distribution alignment": 1, "autoencoder": 1, "MAR": 1}
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class Double(Recording):
    """Runs on a CPU in the room that a CUDA graph has: a pass writes over all that the last one has left, outputs and gradients among it."""

    def _record(self):
        self.autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")  # a graph keeps what was on
        self._run()
        self.output_gradients = [torch.empty_like(output) for output in self.outputs]
        self._differentiate()
        self.room = [output.detach().clone() for output in self.outputs]
        self.gradient_room = [g if g is None else g.clone() for g in self.gradients]

    def _replay_forward(self):
        with torch.enable_grad():
            self._run()
        self.with_graph, self.outputs = self.outputs, self.room
        for room, output in zip(self.room, self.with_graph):
            room.copy_(output.detach())

    def _replay_backward(self):
        self.outputs = self.with_graph
        with torch.autocast("cpu", *self.autocast):
            self._differentiate()
        for room, gradient in zip(self.gradient_room, self.gradients):
            if room is not None:
                room.copy_(gradient)
        self.outputs, self.gradients = self.room, self.gradient_room


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
    """With micro-batches, an average, and evaluations in between."""

    def weights(replay):
        subject = SUBJECTS[name](True, torch.device("cpu"), False)
        world, objective = World(), subject.objective
        config = TrainConfig(steps=STEPS, global_batch=4, accumulation=2, log_steps=2, eval_steps=2, tensorboard=False)
        loop = TrainingLoop(objective, objective, config, subject.optim, world, progress=False)
        if replay:
            graphs = GraphedParts(objective, Double)
            assert graphs.parts
            loop.replaying = graphs.replaying

        def evaluate(step):
            return {"loss_then": float(objective(subject.batch, StepRandom(seed=0, step=step)).loss)}

        measured = loop.run(repeat(subject.batch, 2 * STEPS), evaluate)
        if replay:
            assert sum(not part.recordings for part in graphs.parts) == NOT_REPLAYED.get(name, 0)
            assert all("forward" not in vars(part.module) for part in graphs.parts)
        kept = {n: p.detach().clone() for n, p in objective.named_parameters() if p.requires_grad}
        return kept | {name: torch.tensor(value) for name, value in measured.items()}

    usual, replayed = weights(False), weights(True)
    for each in usual:
        torch.testing.assert_close(replayed[each], usual[each], msg=lambda text, each=each: f"{each}: {text}")


def test_outputs_and_gradients_stay_when_the_next_pass_is_made(generator):
    objective = Objective()
    graphs = GraphedParts(objective, Double)
    x = torch.randn(5, 3, generator=generator)
    kept = []
    for _ in range(2):
        with graphs.replaying():
            h = objective.first(x)
            [gradient] = torch.autograd.grad(h.sum(), objective.first.weight)
        kept.append((h, h.detach().clone(), gradient, gradient.clone()))
        x = x + 1
    for h, h_then, gradient, gradient_then in kept:
        assert torch.equal(h, h_then) and torch.equal(gradient, gradient_then)


def test_a_layer_that_keeps_float32_under_autocast_keeps_it_on_the_way_back(generator):
    class Precise(nn.Linear):
        def forward(self, x):
            with full_precision(x.device):
                return super().forward(x.float())

    found = []
    for replay in (False, True):
        torch.manual_seed(0)
        objective = nn.Sequential(nn.Linear(6, 8), Precise(8, 4))
        objective.replayed_parts = [objective]
        graphs = GraphedParts(objective, Double)
        x = torch.randn(7, 6, generator=generator.manual_seed(3))
        with graphs.replaying() if replay else contextlib.nullcontext():
            with torch.autocast("cpu", torch.bfloat16):
                output = objective(x)
            output.square().sum().backward()
        found.append([p.grad for p in objective.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_parameters_that_moved_were_frozen_or_put_in_another_mode_are_recorded_anew(generator):
    objective = Objective()
    graphs = GraphedParts(objective, Double)
    [first, _], x = graphs.parts, torch.randn(5, 3, generator=generator)

    def gradient():
        objective.zero_grad()
        with graphs.replaying():
            objective(x).backward()
        replayed = objective.second.weight.grad
        objective.zero_grad()
        objective(x).backward()
        torch.testing.assert_close(objective.second.weight.grad, replayed)
        return replayed

    before = gradient()
    objective.first.weight.data = 2 * objective.first.weight.data
    assert not torch.allclose(gradient(), before) and len(first.recordings) == 1
    objective.first.requires_grad_(False)
    gradient()
    assert not first.recordings and objective.first.weight.grad is None  # nothing that it has is trained
    objective.first.requires_grad_(True).eval()
    gradient()
    objective.first.train()
    gradient()
    assert len(first.recordings) == 2


def test_a_part_has_so_many_recordings_and_is_called_as_usual_with_further_shapes(generator, monkeypatch, capsys):
    monkeypatch.setattr("flowprior.training.cuda_graphs.MOST_RECORDINGS", 2)
    objective = Objective()
    graphs = GraphedParts(objective, Double)
    for size in (1, 2, 3, 4):
        x = torch.randn(size, 3, generator=generator)
        with graphs.replaying():
            loss = objective(x)
        torch.testing.assert_close(loss, objective(x))
    assert [len(part.recordings) for part in graphs.parts] == [2, 2]
    assert capsys.readouterr().err.count("a Linear has met more than 2 shapes") == 1


def test_a_part_within_a_part_is_replayed_with_it():
    objective = Objective()
    whole = nn.Sequential(objective.first)
    objective.whole, objective.replayed_parts = whole, [objective.first, whole]
    assert [part.module for part in GraphedParts(objective, Double).parts] == [whole]


def test_under_ddp_gradients_are_those_of_calls(generator):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        objective = Objective()
        graphs, x = GraphedParts(objective, Double), torch.randn(5, 3, generator=generator)
        objective(x).backward()
        usual = [p.grad.clone() for p in objective.parameters()]
        parallel = nn.parallel.DistributedDataParallel(objective)
        for _ in range(3):
            objective.zero_grad(set_to_none=True)
            with graphs.replaying():
                parallel(x).backward()
            for p, expected in zip(objective.parameters(), usual, strict=True):
                torch.testing.assert_close(p.grad, expected)
    finally:
        torch.distributed.destroy_process_group()


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


def test_nothing_is_replayed_where_activations_are_computed_twice_and_a_note_says_so(capsys):
    objective = Objective()
    objective.second.recompute = True
    assert GraphedParts(objective).parts == [] and "nothing is replayed" in capsys.readouterr().err


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
@pytest.mark.parametrize("parallel", [False, True])
def test_on_a_gpu_replays_give_the_gradients_and_the_dropout_of_calls_without_a_warning(bf16, parallel, recwarn):
    if parallel:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        usual = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2)).cuda()
        replayed = copy.deepcopy(usual)
        replayed.replayed_parts = [replayed]
        steps = {}
        for objective in (usual, replayed):
            forward = nn.parallel.DistributedDataParallel(objective) if parallel else objective
            graphs = GraphedParts(objective)
            for step in range(6):
                x = torch.randn(5 + step % 2, 6, generator=torch.Generator().manual_seed(step)).cuda().requires_grad_()
                torch.cuda.manual_seed(step)
                with graphs.replaying():
                    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                        output = forward(x)
                    output.float().square().mean().backward()
                after = torch.rand(1, device="cuda")  # what is drawn next is the same as well
                gradients = [p.grad.clone() for p in objective.parameters()]
                steps.setdefault(step, []).append([x.grad, output.detach(), after, *gradients])
                objective.zero_grad()
        for one, other in steps.values():
            for a, b in zip(one, other, strict=True):
                assert torch.equal(a, b)
        assert not [warning for warning in recwarn if "stream" in str(warning.message)]
    finally:
        if parallel:
            torch.distributed.destroy_process_group()
