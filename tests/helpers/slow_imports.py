"""What commands import late and takes seconds: a process that others are forked from imports it once for all of them."""

import contextlib
import importlib

SLOW_IMPORTS = [
    "torch",
    "torchvision.transforms",
    "timm",
    "scipy.linalg",
    "scipy.stats",
    "sklearn.datasets",
    "torch_fidelity",
    "torchmetrics.functional.image",
    "faiss",
    "safetensors.torch",
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "torch.nn.parallel",
    "torch.distributed.run",
    "yaml",
    "tqdm.auto",
]


def import_all() -> None:
    """Those that are installed."""
    for name in SLOW_IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
