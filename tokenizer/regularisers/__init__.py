"""Regularisers of the latents, by name. A new one is a file with a config that has ``build``, and a line in ``REGULARISERS``."""

from __future__ import annotations

from flowprior.run.config import registry_section
from tokenizer.regularisers.flow import FlowConfig
from tokenizer.regularisers.kl import KLConfig
from tokenizer.regularisers.reals import RealsConfig
from tokenizer.regularisers.soft_pq import SoftPQConfig
from tokenizer.regularisers.softvq import SoftVQConfig
from tokenizer.regularisers.vavae import VAVAEConfig

REGULARISERS = {
    "flow": FlowConfig,
    "kl": KLConfig,
    "softvq": SoftVQConfig,
    "soft_pq": SoftPQConfig,
    "reals": RealsConfig,
    "vavae": VAVAEConfig,
}

# Regularisers that are trained together with a generator, and the script that trains both; presets of both end in their names.
ELSEWHERE = {"simflow": "bash scripts/train_simflow.sh"}

RegulariserConfig = registry_section(
    "RegulariserConfig", "name", "flow", REGULARISERS, "what acts on the latents", several=True, elsewhere=ELSEWHERE
)
