import subprocess
import sys
from functools import partial
from itertools import repeat

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.errors import UserError
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.prior import FlowPrior
from flowprior.flow.solver import sample
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.training import loop as training_loop
from flowprior.training.compilation import check_compiler, compile_parts
from flowprior.training.config import build_config, read_preset
from flowprior.training.distributed import Workers
from flowprior.training.loop import TrainConfig, TrainingLoop
from flowprior.training.optim import OptimConfig
from mar.generator import GeneratorObjective
from mar.model import MARConfig
from tokenizer.train_ae import PRESETS, AEConfig, build_objective
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
    objective = build_objective(config, None, Workers(), 10, prior)
    return objective, objective.autoencoder, {"image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)}


def generator_objective():
    torch.manual_seed(0)
    model = MARConfig(**SMALL_MAR, mask_ratio_min=0.05, mask_ratio_std=0.5).build(TOKENS, CHANNELS, 3)
    batch = {"latents": torch.randn(4, TOKENS, CHANNELS), "label": torch.arange(4) % 3}
    return GeneratorObjective(model, LatentNormaliser(CHANNELS)), model, batch


OBJECTIVES = {
    "flow prior": (prior_objective, lambda model: sample(model, (8, CHANNELS), steps=25)),
    "autoencoder": (autoencoder_objective, lambda model: model(torch.zeros(3, 3, 32, 32))),
    "generator": (generator_objective, lambda model: model.sample(torch.arange(3), [1, 2, 3], cfg=2.0)),
}


def losses(make, evaluate, compiled, steps=STEPS):
    """Of steps with an evaluation after every tenth, without gradients and of another batch size, as the stages have it."""
    objective, model, batch = make()
    config = TrainConfig(steps=steps, global_batch=len(next(iter(batch.values()))), eval_steps=10, compile=compiled)
    loop = TrainingLoop(objective, model, config, OptimConfig(lr=1e-3), Workers(), progress=False)
    seen = []
    loop.run(
        repeat(batch),
        evaluate=lambda step: (evaluate(model), {})[1],
        after_step=lambda terms, _: (seen.append(terms["loss"].item()), {})[1],
    )
    return seen


@pytest.mark.parametrize("stage", OBJECTIVES)
def test_a_stage_needs_a_few_graphs_only_and_trains_as_without_them(stage, monkeypatch):
    """Dynamo's graphs, run by PyTorch's own operators: what differs from the plain run would be the graphs' mistake."""
    make, evaluate = OBJECTIVES[stage]
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(training_loop, "compile_parts", partial(compile_parts, backend=counter))
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        compiled = losses(make, evaluate, compiled=True)
    assert not torch._dynamo.utils.counters["graph_break"]
    # Trained and evaluated, and of fixed and of changing sizes.
    assert 2 <= counter.frame_count <= 8
    assert compiled == losses(make, evaluate, compiled=False)


def test_a_compiled_flow_is_sampled_with_one_graph_for_all_times():
    torch._dynamo.reset()
    counter, velocity = CompileCounter(), prior_objective()[1]
    velocity.compile(backend=counter)
    sample(velocity, (8, CHANNELS), steps=25)
    assert counter.frame_count == 1


def test_compiled_for_the_machine_it_trains_alike(monkeypatch):
    torch._dynamo.reset()
    plain, compiled = (losses(*OBJECTIVES["flow prior"], compiled, steps=12) for compiled in (False, True))
    assert compiled == pytest.approx(plain, rel=1e-4) and compiled[0] != compiled[-1]


@pytest.mark.parametrize("device, variable, named", [("cpu", "CXX", "C++ compiler"), ("cuda", "CC", "C compiler")])
@pytest.mark.parametrize("own", [True, False])
def test_a_machine_without_a_compiler_is_one_line_that_says_what_to_do(device, variable, named, own, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv(variable, "my-compiler") if own else monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match="compile") as caught:
        check_compiler(torch.device(device))
    message = str(caught.value)
    assert named in message and variable in message and "compile=false" in message and "\n" not in message
    assert ("my-compiler" in message) == own


def test_missing_headers_of_python_are_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(UserError, match="Python.h.*compile=false"):
        check_compiler(torch.device("cpu"))


def test_a_stage_says_so_before_it_trains(tmp_path):
    words = ["--distribution", "spiral", "--out", str(tmp_path / "toy"), "flow.train.compile=true"]
    command = [sys.executable, "toy_examples/run.py", *words]
    environment = {"PATH": "", "CXX": "no-such-compiler", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no-such-compiler" in done.stderr
