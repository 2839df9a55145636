import ast

import pytest
import torch
from torch import nn

from flowprior.errors import UserError
from flowprior.flow.velocity import VelocityMLP
from flowprior.metrics.digit_networks import DigitsExtractor, DigitsJudge
from flowprior.run.norms import norm_eps, set_norm_eps
from mar.model import MARConfig
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig

NORMS = {"LayerNorm", "RMSNorm", "GroupNorm", "layer_norm", "rms_norm", "group_norm"}


def stack(*eps: float) -> nn.Sequential:
    return nn.Sequential(*(nn.ModuleDict({"norm": nn.LayerNorm(3, eps=e), "linear": nn.Linear(3, 3)}) for e in eps))


def test_the_eps_of_norms_are_named_once_for_all_blocks_and_set_again():
    assert norm_eps(stack(1e-6, 1e-6)) == {"*.norm": 1e-6}
    with pytest.raises(ValueError, match=r"\*\.norm have eps 1e-06 and 1e-05"):
        norm_eps(stack(1e-6, 1e-5))
    module = stack(1e-6, 1e-6)
    set_norm_eps(module, {"*.norm": 1e-3}, "config.json")
    x = torch.tensor([[0.01, 0.0, -0.01]])
    for part in module:
        torch.testing.assert_close(part["norm"](x), x / (0.0002 / 3 + 1e-3) ** 0.5)


@pytest.mark.parametrize("saved", [{}, {"*.norm": "1e-6"}, {"*.norm": 0.0}, {"*.norm": 1e-6, "x": 1e-6}, [1e-6], None])
def test_what_is_not_the_eps_of_these_norms_is_refused_and_named(saved):
    with pytest.raises(UserError, match="config.json"):
        set_norm_eps(stack(1e-6), saved, "config.json")


def test_every_model_of_the_project_has_the_eps_that_it_states_whatever_timm_does():
    vit = ViTConfig(width=12, depth=2, heads=3)
    mar = norm_eps(MARConfig(size="mar_digits").build(4, 3, 10))
    queries_and_keys = {name for name in mar if name.endswith(("q_norm", "k_norm"))}
    assert {mar[name] for name in queries_and_keys} == {1e-5} and len(queries_and_keys) == 4
    assert {eps for name, eps in mar.items() if name not in queries_and_keys} == {1e-6}
    assert set(norm_eps(Autoencoder(AutoencoderConfig(encoder=vit, decoder=vit))).values()) == {1e-6}
    assert set(norm_eps(VelocityMLP(3, 8, 2)).values()) == {1e-6}
    assert set(norm_eps(DigitsExtractor()).values()) | set(norm_eps(DigitsJudge()).values()) == {1e-5}


def test_every_norm_in_the_code_says_its_eps(repository):
    silent = []
    for package in ("flowprior", "tokenizer", "generation", "mar", "toy_examples"):
        for file in (repository / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func).rpartition(".")[2]
                    called = name == "partial" and node.args and ast.unparse(node.args[0]).rpartition(".")[2] in NORMS
                    if (name in NORMS or name.startswith("BatchNorm") or called) and not any(
                        word.arg == "eps" for word in node.keywords
                    ):
                        silent.append(f"{file.name}:{node.lineno}")
    assert silent == []
