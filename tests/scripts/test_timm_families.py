"""Every architecture of timm that the autoencoder takes: all names without numbers, and one of each kind by two real processes."""

import json
import os
import subprocess

import pytest
import timm
import torch

from every_family import create_model, small_model
from flowprior.errors import UserError
from tokenizer.autoencoder import AutoencoderConfig, Encoder
from tokenizer.vit import SERVING, WHY_NOT, ViTConfig, build_vit, check_serves, timm_module

NAMES = [name for name in timm.list_models() if timm_module(name) in SERVING]


def kind(vit) -> tuple:
    """What tells architectures apart, sizes aside."""
    parts = frozenset(type(part).__name__ for part in vit.modules())
    tokens = (
        vit.cls_token is None,
        vit.reg_token is None,
        vit.pos_embed is None,
        getattr(vit, "no_embed_class", False),
    )
    return type(vit).__name__, vit.global_pool, parts, tokens


@pytest.fixture(scope="module")
def encoders():
    """By name: the kind, the shape of the latents, and the parameters that get no gradient, all on the meta device."""
    found = {}
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
        patch.setattr(timm, "create_model", small_model)
        for name in NAMES:
            encoder = Encoder(AutoencoderConfig(32, 8, tokens=4, channels=3, encoder=ViTConfig(name)))
            latents = encoder(torch.zeros(2, 3, 32, 32))
            latents.sum().backward()
            without = [key for key, p in encoder.named_parameters() if p.grad is None]
            found[name] = kind(encoder.vit), tuple(latents.shape), without
    return found


def test_every_name_of_the_serving_modules_encodes_and_each_of_its_parameters_gets_a_gradient(encoders):
    assert len(encoders) >= 152  # timm 1.0.12's
    assert {name: rest for name, (_, *rest) in encoders.items() if rest != [(2, 4, 3), []]} == {}


def test_one_of_every_kind_trains_in_two_processes_and_all_of_its_weights_move(encoders, scripts, tmp_path, repository):
    names = list({kind: name for name, (kind, *_) in reversed(encoders.items())}.values())
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "every_family"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": scripts.python}
    command = [scripts.python, *words, str(tmp_path), *names]
    subprocess.run(command, cwd=repository / "tests" / "helpers", env=environment, check=True, timeout=240)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and list(first) == names
    assert {name: (found["step"], found["still"]) for name, found in first.items()} == {name: (3, []) for name in names}


@pytest.mark.parametrize("module", WHY_NOT)
def test_a_name_that_cannot_serve_is_refused_in_one_line_that_says_why(module):
    names = timm.list_models(module=module)
    if not names:
        pytest.skip(f"timm {timm.__version__} has no {module}")
    for name in names:
        with pytest.raises(UserError, match=f"'{name}' cannot serve .*{WHY_NOT[module][:20]}") as refused:
            check_serves(name)
        assert "\n" not in str(refused.value)


def test_any_other_name_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(timm, "create_model", pytest.fail)
    others = [name for name in timm.list_models() if timm_module(name) not in SERVING]
    assert {"resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224", "volo_d1_224", "pit_s_224"} <= set(others)
    for name in others[::25]:
        with pytest.raises(UserError, match=f"'{name}' cannot serve"):
            build_vit(ViTConfig(name), 32, 8)


def test_the_small_models_are_those_of_timm_but_for_their_size():
    whole, small = (
        create_model("eva02_tiny_patch14_224", num_classes=0),
        small_model("eva02_tiny_patch14_224", num_classes=0),
    )
    assert kind(whole) == kind(small) and len(small.blocks) == 1
