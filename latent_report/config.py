"""What a person may choose of a report."""

from __future__ import annotations

from dataclasses import dataclass

from flowprior.data.images import ImageConfig
from flowprior.metrics.registry import METRICS
from flowprior.run.config import option
from latent_report.flows import FlowBudget

LEAST_IMAGES = 20  # a fifth of them is held out
PROTOCOL_VERSION = 5  # of the figures: those of two versions do not compare


@dataclass
class ReportConfig:
    """Options of the report: the same for every tokenizer in it."""

    out: str = option("runs/latent_report", "folder of report.html and report.json", changes_result=False)
    images: int = option(2000, "how many images, spread evenly over the data; 0: all")
    data: ImageConfig = option(ImageConfig, "")
    labels: str = option(
        "", "labels of all N images or latents, in place of their own: whole numbers (N,) in an .npy file"
    )
    noise_shares: tuple[float, ...] = option(
        (0.05, 0.1, 0.2, 0.4, 0.8), "noise on the latents, in each channel's deviation, that the decoder is tried with"
    )
    extractor: str = option(
        "", "of rFID: digits, mnist or inception; empty: an embedded data set's own, inception for other images"
    )
    extractor_weights: str = option("", "file of the extractor's weights", changes_result=False)
    lpips_weights: str = option(
        "", "file of torchvision's VGG-16, for LPIPS; empty: where torch's hub keeps it", changes_result=False
    )
    features: str = option("", "timm model whose pooled features latents are compared with; empty: the extractor's")
    features_weights: str = option("", "file of that model's weights, in place of the hub's", changes_result=False)
    prior: str = option("", "flow prior that the latents were to be aligned to: its folder, or user/name of the hub")
    forecast: str = option(
        "",
        "file of the forecast that a study of your own has fitted; empty: those that are kept in latent_report/forecasts",
        changes_result=False,
    )
    flow: FlowBudget = option(FlowBudget, "")
    held_out: float = option(0.2, "share of the images that flows and classifiers are measured on")
    resamples: int = option(100, "of the bootstrap over images")
    seed: int = option(0, "of the split, the noise, the flows and the bootstrap")

    def __post_init__(self) -> None:
        if self.images < LEAST_IMAGES and self.images != 0:
            raise ValueError(f"images is {LEAST_IMAGES} or more, or 0 for all, not {self.images}")
        if not 0.05 <= self.held_out <= 0.5:
            raise ValueError(f"held_out lies between 0.05 and 0.5, not at {self.held_out}")
        if self.resamples < 2:
            raise ValueError(f"resamples is at least 2, not {self.resamples}")
        if not all(0 < share <= 10 for share in self.noise_shares):
            raise ValueError(f"noise_shares lie above 0 and up to 10, not at {list(self.noise_shares)}")
        if self.extractor and self.extractor not in (able := METRICS["inception_score"].extractors):
            raise ValueError(
                f"extractor is {' or '.join(able)}, not {self.extractor}, since it must tell classes; of any timm model features= takes the features"
            )
