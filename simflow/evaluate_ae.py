"""Measure the autoencoder that was trained together with a flow: PSNR, SSIM, rFID and LPIPS, with noise on the latents as well.

    python -m simflow.evaluate_ae [--preset digits_simflow] [option=value ...]

It is ``python -m tokenizer.evaluate`` with this room's presets. Writes ``<run_dir>/ae/evaluation.json``.
"""

from flowprior.errors import entry_point
from simflow.train_simflow import DEFAULT_PRESET, PRESETS, SimFlowAEConfig
from tokenizer.evaluate import run_evaluation


@entry_point
def main() -> None:
    run_evaluation(SimFlowAEConfig, PRESETS, __doc__, DEFAULT_PRESET)


if __name__ == "__main__":
    main()
