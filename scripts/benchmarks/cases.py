"""What ``bash scripts/benchmark.sh`` measures.

A case is a function of a level (``tiny`` for tests, ``quick`` and ``full`` on a CPU, ``gpu``), a device, and an empty folder of its own.
"""

from __future__ import annotations

from scripts.benchmarks.autoencoder_cases import autoencoder_step, autoencoder_step_from_files
from scripts.benchmarks.data_cases import cache_reading, evaluation, image_loading, latent_caching
from scripts.benchmarks.flow_cases import alignment, flow_prior_step, toy_step
from scripts.benchmarks.mar_cases import mar_sampling, mar_step
from scripts.benchmarks.place_cases import cold_places, cold_reading, image_places, indexing
from scripts.benchmarks.sit_cases import sit_sampling, sit_step

CASES = {
    "flow prior step": flow_prior_step,
    "alignment and its gradient": alignment,
    "autoencoder step": autoencoder_step,
    "MAR step": mar_step,
    "MAR sampling": mar_sampling,
    "SiT step": sit_step,
    "SiT sampling": sit_sampling,
    "toy step": toy_step,
    "latent caching": latent_caching,
    "cache reading": cache_reading,
    "image loading": image_loading,
    "places of images": image_places,
    "places of images, cold": cold_places,
    "reading files, cold": cold_reading,
    "indexing": indexing,
    "training from files": autoencoder_step_from_files,
    "evaluation": evaluation,
}
