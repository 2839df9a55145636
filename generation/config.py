"""Stage 3's config, whatever the generator: one tree that all of its commands read. A generator's own config is based on it."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from flowprior.data.image_archive import archive_has_images
from flowprior.data.images import ImageConfig
from flowprior.data.latent_writer import CacheConfig
from flowprior.data.stores.recognise import may_hold_images
from flowprior.metrics.extractor_options import ExtractorOptions
from flowprior.metrics.registry import EXTRACTORS, METRICS, check_extractor, choose_metrics
from flowprior.run.config import option
from flowprior.run.presets import CommandLine, read_command_line
from flowprior.run.run_folder import RunFolder
from flowprior.training.config import TrainConfig
from flowprior.training.optim import OptimConfig
from generation.presets import JOINT, find_family

C = TypeVar("C", bound="GenerationConfig")


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
    compile: bool = option(
        False, "torch.compile for the generator; changes speed, and images by rounding only; not with exact"
    )
    preview_images: int = option(64, "images in the picture drawn while training")
    preview_cfg: float = option(2.0, "guidance scale of that picture")

    def __post_init__(self) -> None:
        if min(self.count, self.batch, self.preview_images) < 1 or not self.cfg or min(self.cfg) < 0:
            raise ValueError("count, batch and preview_images are at least 1, cfg is a list such as [1, 1.5]")
        if self.exact and self.compile:
            raise ValueError(
                "exact keeps every bit, and compile does not: write sample.exact=false or sample.compile=false"
            )


@dataclass
class FDrConfig:
    """Further extractors, and the mean of their distances normalised by a baseline's (FDr, arXiv 2604.28190)."""

    extractors: tuple[str, ...] = option(
        (),
        "such as [inception, timm:vit_base_patch14_dinov2.lvd142m, timm:convnext_base.fb_in22k@288=weights.safetensors]; behind = a weight "
        "file or package:<name>",
    )
    baseline: str = option(
        "",
        "images whose distance by each extractor is 1: real ones that the reference does not hold, say; an .npz with arr_0, or images",
    )
    precision_recall: bool = option(False, "precision and recall in each extractor's features as well")

    def __post_init__(self) -> None:
        if bool(self.extractors) != bool(self.baseline):
            named, missing = ("extractors", "baseline") if self.extractors else ("baseline", "extractors")
            raise ValueError(
                f"fdr.{named} goes with fdr.{missing}: FDr divides each extractor's distance by that of a baseline's images"
            )
        if self.baseline and not (self.baseline.endswith(".npz") or may_hold_images(self.baseline)):
            raise ValueError(
                f"fdr.baseline is the path of an .npz or of images, and there are none at '{self.baseline}': give real images that the "
                "reference does not hold"
            )
        names = [text.partition("=")[0] for text in self.extractors]
        for name in names:
            check_extractor(name)
            if names.count(name) > 1:
                raise ValueError(f"fdr.extractors holds {name} twice: name each once")


@dataclass
class EvaluateConfig(ExtractorOptions):
    """How generated images are measured."""

    SECTION = "evaluate"

    extractor: str = option("inception", f"extractor of features: {' or '.join(EXTRACTORS)}; the digits' is embedded")
    fdr: FDrConfig = option(FDrConfig, "")
    reference: str = option(
        "data",
        "data: all images of the training data; an .npz with mu and sigma, or arr_0, or both; or images, wherever data.path may point",
    )
    metrics: tuple[str, ...] = option(
        (),
        f"what is measured, of {', '.join(METRICS)}; empty: all that apply but the last two. The time of precision_recall is quadratic",
    )
    half_half_splits: int = option(
        0, "random halves of the real images whose FID is measured as a yardstick; needs reference=data"
    )
    online_count: int = option(
        0, "images whose FID is measured in training, at the preview's guidance, at least 2; 0: none"
    )
    online_epochs: float = option(
        0.0, "measure and draw the preview every so many epochs, in place of every train.eval_steps steps"
    )
    inception_split: int = option(
        0, "images in each split of the inception score, such as ADM's 5000; 0: ten equal splits, as torch-fidelity's"
    )
    samples: str = option(
        "",
        "what is measured: empty, the run's sets; generate, the same and drawn first if need be; an .npz; or images, wherever data.path may "
        "point",
    )

    def __post_init__(self) -> None:
        if not (self.uses_data or self.reference.endswith(".npz") or may_hold_images(self.reference)):
            raise ValueError(
                f"reference is data, or the path of an .npz or of images; '{self.reference}' is none, or not there"
            )
        if min(self.half_half_splits, self.online_count, self.online_epochs, self.inception_split) < 0:
            raise ValueError("half_half_splits, online_count, online_epochs and inception_split are 0 or more")
        if self.online_count == 1:
            raise ValueError("online_count is 0 or at least 2: one image has no covariance")
        if (
            self.samples not in ("", "generate")
            and not self.samples.endswith(".npz")
            and not may_hold_images(self.samples)
        ):
            raise ValueError(f"samples is empty, generate, or the path of an .npz or of images, not '{self.samples}'")
        super().__post_init__()
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

    def samples_in(self, folder: Path) -> str:
        """Where the samples lie, in words; ``folder`` is the generator's."""
        return f"{folder}/samples" if self.samples_have_labels else self.samples

    def chosen_metrics(self) -> tuple[str, ...]:
        """The metrics that are computed; a ``ValueError`` for one that is unknown or does not apply."""
        return choose_metrics(
            self.metrics,
            self.extractor_name,
            reference_images=self.reference_has_images,
            labels=self.samples_have_labels,
        )


@dataclass
class GenerationConfig:
    """Stage 3. A generator's room has a subclass of it, which says all that the commands need to know of the room.

    The subclass sets ``NAME`` and ``PRESETS``, and gives ``model`` its type: a :func:`~flowprior.run.config.registry_section` chosen
    by ``name``. Each entry of the registry has ``build(tokens, channels, num_classes)``, which makes a
    :class:`~generation.generator.Generator`, and a section ``sampler`` with what may change once the generator is trained, which
    may have ``unread``: by option that changes no sample, the options beside which that is so.

    Attributes:
        NAME: of the room: its package, the generator's folder in a run, and ``scripts/train_<NAME>.sh``.
        PRESETS: folder of the room's presets.
        command_line: what a person wrote, where the config is one of a command.
    """

    NAME: ClassVar[str]
    PRESETS: ClassVar[Path]

    run_dir: str = option(
        "runs/digits",
        "folder of the run; the stage writes into its latents/ and the generator's folder",
        changes_result=False,
    )
    autoencoder: str = option(
        "",
        "folder of the autoencoder, or a Python file with one of your own (docs/import_weights.md); empty: <run_dir>/ae/autoencoder",
        changes_result=False,
    )
    start: str = option(
        "",
        "folder of a trained generator of this autoencoder's latents and of this model's sizes, whose weights and scale training starts from; "
        "empty: fresh weights, and the scale in the cache",
    )
    data: ImageConfig = option(ImageConfig, "")
    cache: CacheConfig = option(CacheConfig, "")
    model: Any = option(None, "which generator, and its options")
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")
    sample: SampleConfig = option(SampleConfig, "", changes_result=False)
    evaluate: EvaluateConfig = option(EvaluateConfig, "", changes_result=False)

    def __post_init__(self) -> None:
        self.command_line = CommandLine()
        if self.data.flip or self.data.crop != "centre":
            raise ValueError(
                "stage 3 sees the latents of central crops: leave out data.flip and data.crop, and write cache.flips=true or cache.ten_crop=true"
            )

    @classmethod
    def read(cls: type[C], description: str, words: list[str] | None = None) -> C:
        """The config that the command line, or ``words`` in its place, asks for; ``<generator>`` in the description is the room's name.

        The preset is found by :func:`~generation.presets.find_family`.
        """
        description = description.replace("<generator>", cls.NAME)
        config, command_line = read_command_line(cls, cls.PRESETS, description, words, find_family)
        config.command_line = command_line
        return config

    @classmethod
    def command(cls, name: str) -> str:
        """What a person types to run the room's command ``name``."""
        return f"python -m {cls.NAME} {name}"

    def command_here(self, name: str) -> str:
        """:meth:`command` with the preset and the options that were written, and this run's folder."""
        line = self.command_line
        preset = ["--preset", line.preset] if line.preset else []
        own = [] if "run_dir" in line.options else [f"run_dir={self.run_dir}"]
        return " ".join([self.command(name), shlex.join([*preset, *line.words, *own])])

    def makes_autoencoder(self) -> str:
        """What a person types to train the autoencoder that the run lacks; a preset of one that is trained with a generator has a script of its
        own, called as that generator's room."""
        rooms = [
            f.parent.parent.name for f in self.PRESETS.parent.parent.glob(f"*/{JOINT}/{self.command_line.preset}.yaml")
        ]
        return f"bash scripts/train_{rooms[0] if rooms else 'ae'}.sh run_dir={self.run_dir}"

    def makes_generator(self, regularisers: Collection[str]) -> str:
        """What a person does to have the generator that the run lacks; ``regularisers`` are the names of those of the run's autoencoder."""
        return f"run `bash scripts/train_{self.NAME}.sh run_dir={self.run_dir}`"

    @property
    def autoencoder_folder(self) -> Path:
        return Path(self.autoencoder) if self.autoencoder else Path(self.run_dir) / "ae" / "autoencoder"

    @property
    def cache_folder(self) -> Path:
        """Of the latents, which all generators of a run share."""
        return Path(self.run_dir) / "latents"

    @property
    def folder(self) -> Path:
        """Of the generator: its log, checkpoints, samples and evaluation."""
        return Path(self.run_dir) / self.NAME

    @classmethod
    def complete_section(cls, section: Any, what: str) -> Any:
        """``model`` as ``what``, a run or a saved generator, states it in plain values, with the options that were not there yet when it
        was written, where their defaults are not what it was made with. As it is, unless a room says otherwise."""
        return section

    def keep_what_began(self, folder: RunFolder) -> None:
        """Take from the run in ``folder`` what it goes on with though this config asks for other. Nothing, unless a room says otherwise."""

    def equip(self, model: Any, saved: dict[str, Any]) -> None:
        """Give a trained generator what it samples with besides its own weights; ``saved`` is its ``config.json``. Nothing, unless a room
        says otherwise."""

    def equipment(self, saved: dict[str, Any]) -> dict[str, str]:
        """Fingerprints, by name, of what :meth:`equip` would give, for the sampling protocol."""
        return {}
