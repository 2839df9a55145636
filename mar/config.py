"""Stage 3's config: one tree that all of its commands read, and the registry of generators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowprior.data.image_archive import archive_has_images
from flowprior.data.images import ImageConfig
from flowprior.data.latent_cache import CacheConfig
from flowprior.metrics.registry import EXTRACTORS, METRICS, choose_metrics
from flowprior.run.config import option, registry_section
from flowprior.run.presets import config_from_command_line
from flowprior.training.loop import TrainConfig
from flowprior.training.optim import OptimConfig
from mar.generator import Generator
from mar.model import MARConfig

# Each has build(tokens, channels, num_classes), and a section `sampler` with what may change once the generator is trained.
GENERATORS = {"mar": MARConfig}
PRESETS = Path(__file__).parent / "configs"


GeneratorConfig = registry_section("GeneratorConfig", "name", "mar", GENERATORS, "which generator is trained")


def build_generator(config: GeneratorConfig, tokens: int, channels: int, num_classes: int) -> Generator:
    """The generator that ``config.name`` names."""
    return getattr(config, config.name).build(tokens, channels, num_classes)


@dataclass
class SampleConfig:
    """What is sampled for the evaluation."""

    count: int = option(50_000, "images per guidance scale")
    class_shares: Literal["auto", "equal", "data"] = option(
        "auto",
        "shares of the classes: equal, those of the data, or auto: those of the reference where they are known and not nearly equal",
    )
    cfg: tuple[float, ...] = option((1.0,), "guidance scales, one set of images each")
    batch: int = option(256, "images at once in every process; changes speed, and images by rounding only")
    seed: int = option(0, "image i is drawn from (seed, i)")
    exact: bool = option(
        False,
        "draw in groups of 16 of fixed shape, so that no bit of an image depends on batch; without it rounding does",
    )
    precision: Literal["float32", "bfloat16"] = option(
        "float32", "precision of generator and decoder; bfloat16 is autocast"
    )
    preview_images: int = option(64, "images in the picture drawn while training")
    preview_cfg: float = option(2.0, "guidance scale of that picture")

    def __post_init__(self) -> None:
        if min(self.count, self.batch, self.preview_images) < 1 or not self.cfg or min(self.cfg) < 0:
            raise ValueError("count, batch and preview_images are at least 1, cfg is a list such as [1, 1.5]")


@dataclass
class EvaluateConfig:
    """How generated images are measured."""

    extractor: str = option("inception", f"extractor of features: {' or '.join(EXTRACTORS)}; the digits' is embedded")
    weights: str = option("", "the extractor's weight file, where it is not in torch's hub folder")
    reference: str = option(
        "data",
        "data: all images of the training data; an .npz with mu and sigma, or arr_0, or both; or a folder of images",
    )
    metrics: tuple[str, ...] = option(
        (),
        f"what is measured, of {', '.join(METRICS)}; empty: all that apply but the last two. The time of precision_recall is quadratic",
    )
    half_half_splits: int = option(
        0, "random halves of the real images whose FID is measured as a yardstick; needs reference=data"
    )
    online_count: int = option(0, "images whose FID is measured in training, at the preview's guidance; 0: none")
    online_epochs: float = option(
        0.0, "measure and draw the preview every so many epochs, in place of every train.eval_steps steps"
    )
    inception_split: int = option(
        0, "images in each split of the inception score, such as ADM's 5000; 0: ten equal splits, as torch-fidelity's"
    )
    samples: str = option(
        "",
        "what is measured: empty, the run's sets; generate, the same and drawn first if need be; or an .npz or a folder of images",
    )

    def __post_init__(self) -> None:
        if not (self.uses_data or self.reference.endswith(".npz") or Path(self.reference).is_dir()):
            raise ValueError(
                f"reference is data or the path of an .npz or of a folder of images, not '{self.reference}'"
            )
        if min(self.half_half_splits, self.online_count, self.online_epochs, self.inception_split) < 0:
            raise ValueError("half_half_splits, online_count, online_epochs and inception_split are 0 or more")
        if (
            self.samples not in ("", "generate")
            and not self.samples.endswith(".npz")
            and not Path(self.samples).is_dir()
        ):
            raise ValueError(f"samples is empty, generate, or the path of an .npz or of a folder, not '{self.samples}'")
        self.chosen_metrics()

    @property
    def uses_data(self) -> bool:
        return self.reference == "data"

    @property
    def reference_has_images(self) -> bool:
        """Whether the reference is more than moments; of a file that is not there yet, it may be."""
        file = Path(self.reference)
        return file.suffix != ".npz" or not file.is_file() or archive_has_images(file)

    @property
    def samples_have_labels(self) -> bool:
        """Whether the images' classes are those that were asked for."""
        return self.samples in ("", "generate")

    def samples_of(self, run_dir: str) -> str:
        """Where the samples lie, in words."""
        return f"{run_dir}/mar/samples" if self.samples_have_labels else self.samples

    def chosen_metrics(self) -> tuple[str, ...]:
        """The metrics that are computed; a ``ValueError`` for one that is unknown or does not apply."""
        return choose_metrics(
            self.metrics,
            self.extractor,
            reference_images=self.reference_has_images,
            labels=self.samples_have_labels,
        )


@dataclass
class MARStageConfig:
    """Stage 3."""

    run_dir: str = option(
        "runs/digits", "folder of the run; the stage writes into its latents/ and mar/", changes_result=False
    )
    autoencoder: str = option("", "folder of the autoencoder; empty: <run_dir>/ae/autoencoder", changes_result=False)
    data: ImageConfig = option(ImageConfig, "")
    cache: CacheConfig = option(CacheConfig, "")
    model: GeneratorConfig = option(GeneratorConfig, "")
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")
    sample: SampleConfig = option(SampleConfig, "", changes_result=False)
    evaluate: EvaluateConfig = option(EvaluateConfig, "", changes_result=False)

    def __post_init__(self) -> None:
        if self.data.flip or self.data.crop != "centre":
            raise ValueError(
                "stage 3 sees the latents of central crops: leave out data.flip and data.crop, and write cache.flips=true or cache.ten_crop=true"
            )

    @property
    def autoencoder_folder(self) -> Path:
        return Path(self.autoencoder) if self.autoencoder else Path(self.run_dir) / "ae" / "autoencoder"

    @property
    def cache_folder(self) -> Path:
        return Path(self.run_dir) / "latents"


def read_config(description: str, words: list[str] | None = None) -> MARStageConfig:
    """The config that the command line, or ``words`` in its place, asks for.

    The stage is the same for every autoencoder of a family: ``imagenet_qwen``, say, reads the preset ``imagenet``.
    """
    return config_from_command_line(MARStageConfig, PRESETS, description, words, families=True)
