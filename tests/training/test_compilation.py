import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import repeat

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.testing import CompileCounter
from torch._inductor.exc import CppCompileError

from compiler import needs_compiler
from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.prior import FlowPrior
from flowprior.flow.solver import sample
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import build_config, changed_options, to_dict
from flowprior.run.presets import read_preset
from flowprior.run.reporting import read_log
from flowprior.training import loop as training_loop
from flowprior.training.compilation import compile_parts, compiler_failures_told
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.optim import OptimConfig
from generation.generator import GeneratorObjective
from mar.distillation import DistilConfig, GuidanceDistillation, HeadDistillation
from mar.flow_map import FlowMap
from mar.model import MARConfig
from sit.model import SiTConfig
from sit.sampler import SamplerConfig as SiTSamplerConfig
from tokenizer.config import PRESETS, AEConfig
from tokenizer.train_ae import build_objective
from tokenizer.vit import ViTConfig

CHANNELS, TOKENS, STEPS = 4, 12, 40
IDENTITY = TargetMap(torch.zeros(CHANNELS), torch.ones(()), torch.eye(CHANNELS))
SMALL_MAR = dict(width=16, encoder_depth=2, decoder_depth=2, heads=2, buffer_tokens=2, head_width=16, head_depth=2)


def prior_objective():
    torch.manual_seed(0)
    objective = FlowMatchingObjective(VelocityMLP(CHANNELS, 16, 2), IDENTITY, pairs=2, group_size=4)
    return objective, objective.velocity, {"features": torch.randn(8, CHANNELS)}


def autoencoder_objective():
    torch.manual_seed(0)
    config = build_config(AEConfig, read_preset(PRESETS / "digits.yaml", PRESETS))
    config.loss.perceptual_weight = config.loss.adversarial.weight = 0.0
    config.model.encoder = config.model.decoder = ViTConfig(width=16, depth=2, heads=2)
    channels = config.model.channels
    prior = FlowPrior(VelocityMLP(channels, 16, 1), TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, channels)))
    objective = build_objective(config, None, World(), 10, prior)
    return objective, objective.autoencoder, {"image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)}


def generator_objective(**options):
    torch.manual_seed(0)
    model = MARConfig(**SMALL_MAR, mask_ratio_min=0.05, mask_ratio_std=0.5, **options).build(TOKENS, CHANNELS, 3)
    batch = {"latents": torch.randn(4, TOKENS, CHANNELS), "label": torch.arange(4) % 3}
    return GeneratorObjective(model, LatentNormaliser(CHANNELS)), model, batch


def sit_objective():
    torch.manual_seed(0)
    config = SiTConfig(width=16, depth=2, heads=2, block="lightning", sampler=SiTSamplerConfig(steps=4))
    model = config.build(TOKENS, CHANNELS, 3)
    batch = {"latents": torch.randn(4, TOKENS, CHANNELS), "label": torch.arange(4) % 3}
    return GeneratorObjective(model, LatentNormaliser(CHANNELS)), model, batch


def distillation(make):
    """Of a small MAR whose numbers of wanted tokens change from step to step; ``make`` gives the objective from generator and config."""
    bundle, model, batch = generator_objective()
    objective = make(model, bundle.normaliser, DistilConfig(solver_steps=4, jumps=3))
    return objective, objective.product, batch


def guidance_objective(model, normaliser, config):
    return GuidanceDistillation(model, FlowMap(model.head, config.guidance), normaliser, config)


# What a stage trains, what its evaluation does, and how many graphs it takes at most: one to train and one to evaluate with, for each network; the
# generator's blocks share theirs, and sizes that change bring one more, as does a single masked token.
OBJECTIVES = {
    "flow prior": (prior_objective, lambda model: sample(model, (8, CHANNELS), steps=25), 2),
    "autoencoder": (autoencoder_objective, lambda model: model(torch.zeros(3, 3, 32, 32)), 4),
    "generator": (generator_objective, lambda model: model.sample(torch.arange(3), [1, 2, 3], cfg=2.0), 6),
    "generator, few mask counts, pairs that share times": (
        partial(generator_objective, mask_counts=6, pairs_share_time=True),
        lambda model: model.sample(torch.arange(3), [1, 2, 3], cfg=2.0),
        6,
    ),
    "flow map": (partial(distillation, HeadDistillation), lambda flow_map: None, 8),
    "guided transformer": (partial(distillation, guidance_objective), lambda guided: None, 12),
    "SiT": (sit_objective, lambda model: model.sample(torch.arange(3), [1, 2, 3], cfg=2.0), 2),
}


def losses(make, evaluate, compiled, steps=STEPS):
    """Of steps with an evaluation after every tenth, without gradients and of another batch size, as the stages have it."""
    objective, model, batch = make()
    config = TrainConfig(steps=steps, global_batch=len(next(iter(batch.values()))), eval_steps=10, compile=compiled)
    loop = TrainingLoop(objective, model, config, OptimConfig(lr=1e-3), World(), progress=False)
    seen = []
    loop.run(
        repeat(batch),
        evaluate=lambda step: (evaluate(model), {})[1],
        after_optimizer_step=lambda output, _: (seen.append(output.loss.item()), {})[1],
    )
    return seen


@pytest.mark.parametrize("stage", OBJECTIVES)
def test_a_stage_needs_a_few_graphs_only_and_trains_as_without_them(stage, monkeypatch):
    """Dynamo's graphs, run by PyTorch's own operators: what differs from the plain run would be the graphs' mistake."""
    make, evaluate, graphs = OBJECTIVES[stage]
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(training_loop, "compile_parts", partial(compile_parts, backend=counter))
    torch._dynamo.utils.counters.clear()
    compiled = losses(make, evaluate, compiled=True)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert 2 <= counter.frame_count <= graphs
    assert compiled == losses(make, evaluate, compiled=False)


def test_a_compiled_flow_is_sampled_with_one_graph_for_all_times():
    torch._dynamo.reset()
    counter, velocity = CompileCounter(), prior_objective()[1]
    velocity.compile(backend=counter)
    sample(velocity, (8, CHANNELS), steps=25)
    assert counter.frame_count == 1


@needs_compiler
def test_compiled_for_the_machine_it_trains_alike():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = (losses(*OBJECTIVES["flow prior"][:2], compiled, steps=12) for compiled in (False, True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.fixture(autouse=True)
def own_setting():
    """The loop changes it for the whole process."""
    with torch._functorch.config.patch(donated_buffer=True):
        yield


def toy(folder, *words, **environment):
    """Three steps of a toy, its graphs made anew in ``folder``."""
    command = [sys.executable, "toy_examples/run.py", "--distribution", "spiral", "--out", str(folder / "toy")]
    small = ["map.grid=8", "map.pairs=4", "map.dpi=40", "density.kde_samples=500", "latents.train.global_batch=50"]
    words = ["flow.train.steps=3", "latents.train.steps=3", *small, *words]
    own = {"CUDA_VISIBLE_DEVICES": "", "TORCHINDUCTOR_CACHE_DIR": str(folder / "made"), **environment}
    return subprocess.run([*command, *words], env=os.environ | own, capture_output=True, text=True, timeout=120)


def test_without_a_compiler_a_run_ends_with_one_line_and_needs_none_without_the_option(tmp_path):
    done = toy(tmp_path, "flow.train.compile=true", CXX="no-such-compiler")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: torch.compile failed") and "no-such-compiler" in last and "CXX" in last
    assert toy(tmp_path, CXX="no-such-compiler").returncode == 0


@needs_compiler
def test_a_compiler_that_fails_is_quoted(tmp_path):
    """Its own line says why, among many of the command and the code."""
    compiler = tmp_path / "g++"
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("g++")} -include absent.h "$@"\n')
    compiler.chmod(0o755)
    done = toy(tmp_path, "flow.train.compile=true", CXX=str(compiler))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert re.search(r"fatal error: absent\.h: .*; where that is for want of a compiler", done.stderr.splitlines()[-1])


def compiled_with(failure):
    """Sample a flow whose compiler raises ``failure``."""

    def backend(graph, inputs):
        raise failure

    torch._dynamo.reset()
    velocity = prior_objective()[1]
    velocity.compile(backend=backend)
    with compiler_failures_told():
        sample(velocity, (2, CHANNELS), steps=1)


WORKER = (
    "An exception occurred in a subprocess:\nTraceback ...\n subprocess.CalledProcessError: Command '['gcc']' failed"
)


@pytest.mark.parametrize("failure", [RuntimeError("Failed to find C compiler. Please specify it."), Exception(WORKER)])
def test_triton_that_finds_no_compiler_is_one_line_too(failure):
    with pytest.raises(
        UserError, match="torch.compile failed: .*(Failed to find C compiler|CalledProcessError: Command.*gcc)"
    ):
        compiled_with(failure)


def test_mistakes_of_pytorchs_compiler_and_of_a_step_stay_what_they_are():
    with pytest.raises(BackendCompilerFailed, match="no rule for this"):
        compiled_with(AssertionError("no rule for this"))
    with pytest.raises(RuntimeError, match="shapes"), compiler_failures_told():
        torch.ones(2, 3) @ torch.ones(2, 3)


class Interrupted:
    """A compiler that Ctrl-C reaches as it reaches the run: in the first step, or in the first evaluation."""

    def __init__(self, evaluating):
        self.evaluating = evaluating

    def __call__(self, graph, inputs):
        if torch.is_grad_enabled() == self.evaluating:
            return graph
        signal.raise_signal(signal.SIGINT)
        raise CppCompileError(["g++", "main.cpp"], "")


@pytest.mark.parametrize(
    "evaluating, eval_steps, after, kept", [(False, 5, 0, []), (True, 5, 5, [5]), (True, 0, 8, [6])]
)
def test_ctrl_c_that_ends_the_compiler_too_is_a_stop_and_no_failure(
    evaluating, eval_steps, after, kept, tmp_path, monkeypatch, capsys
):
    torch._dynamo.reset()
    monkeypatch.setattr(training_loop, "compile_parts", partial(compile_parts, backend=Interrupted(evaluating)))
    config = TrainConfig(
        steps=8, global_batch=8, compile=True, eval_steps=eval_steps, checkpoint_steps=6, tensorboard=False
    )

    def run(folder, config):
        objective, velocity, batch = prior_objective()
        loop = TrainingLoop(objective, velocity, config, OptimConfig(), World(), folder, progress=False)
        loop.run(repeat(batch), lambda step: {"mean": sample(velocity, (8, CHANNELS), steps=4).mean().item()})
        return velocity.state_dict()

    with pytest.raises(SystemExit) as end:
        run(tmp_path, config)
    assert end.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"stopped after step {after};")
    assert [int(folder.name[5:]) for folder in (tmp_path / "checkpoints").glob("step_*")] == kept
    plain = replace(config, compile=False)
    torch.testing.assert_close(run(tmp_path, plain), run(None, plain))
    assert any(row["step"] == 8 and "mean" in row for row in read_log(tmp_path / "log.jsonl"))


def test_a_run_goes_on_with_or_without_its_graphs():
    assert changed_options(TrainConfig, to_dict(TrainConfig(compile=True)), to_dict(TrainConfig())) == []
