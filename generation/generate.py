"""Sample images from the trained generator: the sets that are evaluated, or a picture of classes of one's choice.

    python -m <generator> generate [--preset digits] [sample.cfg=[1,2]] [option=value ...]
    python -m <generator> generate [--preset digits] --classes 207 360 --cfg 3 --n 16 --out grid.png [option=value ...]

The first form writes <run_dir>/<generator>/samples/cfg_<scale>.npz (arr_0 uint8 (N, H, W, 3) as ADM's evaluator reads it, and labels) with a
.json beside it that says how they were made; interrupted, it goes on where it was. Its classes are in the shares of the data or of the
evaluation's reference (sample.class_shares). The second writes one .png with a class in
every row, or one .npz. Image i depends on the seed and on i, not on the number of processes, and on the batch by
rounding only (with sample.exact=true not at all). With sample.compile=true it depends on both by rounding.

options of the second form:
  --classes C [C ...]  numbers or names of classes, in equal shares [all classes]
  --n N                how many images [16]
  --cfg SCALE          guidance scale [sample.preview_cfg]
  --out FILE           .png or .npz [<run_dir>/<generator>/grid.png]
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flowprior.data.image_archive import ImageArchive, draw_parts, load_part, write_image_archive
from flowprior.distributed import World, distributed_world
from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.config import to_dict
from flowprior.run.files import read_json
from flowprior.run.lock import sole_writer
from flowprior.run.pictures import save_sheet
from flowprior.run.presets import Parser
from flowprior.run.provenance import Provenance
from flowprior.run.run_folder import Stopwatch
from flowprior.training.compilation import compile_parts, compiler_failures_told
from generation.autoencoder import load_autoencoder
from generation.config import GenerationConfig, SampleConfig
from generation.labels import ClassShares, choose_shares
from generation.sample_drawer import EXACT_GROUP, SampleDrawer
from generation.saved import load_generator
from generation.written import note_unread


def main(stage: type[GenerationConfig]) -> None:
    arguments, rest = parse(sys.argv[1:])
    config = stage.read(__doc__, rest)
    with distributed_world() as world, compiler_failures_told():
        if arguments:
            draw_chosen(config, *load_compiled_drawer(config, world), arguments)
        else:
            with sole_writer(config.folder, world, may_be_read_only=True):
                draw_sets(config, world)


def load_drawer(config: GenerationConfig, world: World) -> tuple[SampleDrawer, dict[str, Any]]:
    """The run's generator and autoencoder, and what the generator's ``config.json`` says."""
    autoencoder = load_autoencoder(config, world.device)
    bundle, saved = load_generator(config, autoencoder, world.device)
    config.equip(bundle.model, saved)
    note_unread(config)
    return SampleDrawer(bundle.to(world.device), autoencoder, config.sample, world), saved


def load_compiled_drawer(config: GenerationConfig, world: World) -> tuple[SampleDrawer, dict[str, Any]]:
    """The same, compiled where ``sample.compile`` says so."""
    drawer, saved = load_drawer(config, world)
    if config.sample.compile:
        note("sample.compile=true: the first images wait for the compiler, up to minutes")
        compile_parts(drawer.bundle.model)
    return drawer, saved


def draw_sets(config: GenerationConfig, world: World) -> None:
    """One set of images for every guidance scale; what is there already stays."""
    drawer, saved = load_compiled_drawer(config, world)
    shares = choose_shares(config, saved)
    if drawer.bundle.model.num_classes == 1 and set(config.sample.cfg) != {1}:
        note(
            "the generator has one class, so that guidance has nothing to point at: sample.cfg=[1] draws one set without it"
        )
    for cfg in config.sample.cfg:  # before the first set is drawn
        drawer.bundle.model.check_guidance(cfg)
    for cfg in config.sample.cfg:
        generate_set(config, drawer, cfg, protocol(config, saved, cfg, shares.description), shares)


def parse(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The second form's options that are there, and the other words."""
    parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--classes", nargs="+")
    parser.add_argument("--cfg", type=float)
    parser.add_argument("--n", type=int)
    parser.add_argument("--out", type=Path)
    arguments, rest = parser.parse_known_args(words)
    chosen = vars(arguments)
    overrides = [word for word in chosen.get("classes", []) if "=" in word]  # they may follow the list of classes
    if overrides:
        chosen["classes"] = [word for word in chosen["classes"] if word not in overrides]
    return chosen, overrides + rest


def samples_file(config: GenerationConfig, cfg: float) -> Path:
    return config.folder / "samples" / f"cfg_{cfg:g}.npz"


def protocol(config: GenerationConfig, saved: dict[str, Any], cfg: float, labels: list[int] | str) -> dict[str, Any]:
    """How a set of images is made: equal protocols mean equal images, but for rounding where ``exact`` is off.

    Args:
        config, saved: of the stage, and the generator's ``config.json``.
        cfg: guidance scale.
        labels: of the images where they are chosen by hand, else what :func:`~generation.labels.choose_shares` tells of them.
    """
    return {
        "generator": saved["fingerprint"],
        "autoencoder": saved["about"]["autoencoder"],
        "count": config.sample.count,
        "seed": config.sample.seed,
        "labels": labels,
        "cfg": cfg,
        "sampler": felt_options(getattr(config.model, saved["generator"]["name"]).sampler),
        "precision": config.sample.precision,
        "exact": config.sample.exact,
        **config.equipment(saved),
    }


def felt_options(sampler: Any) -> dict[str, Any]:
    """The options of a sampler that images depend on."""
    felt = {field.name for field in dataclasses.fields(sampler) if field.metadata.get("changes_result", True)}
    return {name: value for name, value in to_dict(sampler).items() if name in felt}


def protocols_of_sets(config: GenerationConfig) -> dict[float, tuple[dict[str, Any], Tensor]]:
    """What :func:`protocol` says of the run's generator by guidance scale, without loading it, and the labels, see
    :meth:`~generation.labels.ClassShares.labels`; empty where there is none."""
    file = config.folder / "generator" / "config.json"
    if not file.is_file():
        return {}
    try:
        saved = read_json(file, "generator")
        shares = choose_shares(config, saved)
        labels = shares.labels(saved.get("shape", {}).get("num_classes", 1), config.sample.count)
        return {cfg: (protocol(config, saved, cfg, shares.description), labels) for cfg in config.sample.cfg}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error})") from error


def provenance_of_set(config: GenerationConfig, cfg: float) -> Provenance:
    """Where :func:`protocol` of a set that is there stands; one written before an option existed was made with the option's default."""
    sampler = type(getattr(config.model, config.model.name).sampler)()
    file, defaults = samples_file(config, cfg), felt_options(sampler)
    unfelt = to_dict(sampler).keys() - defaults.keys()

    def with_defaults(kept: Any) -> Any:
        if not isinstance(kept, dict) or not isinstance(kept.get("sampler"), dict):
            return None
        kept = {"precision": SampleConfig.precision, "exact": SampleConfig.exact} | kept
        there = {name: value for name, value in kept["sampler"].items() if name not in unfelt}
        return kept | {"sampler": defaults | there}

    return Provenance(file.with_suffix(".json"), "sampling protocol", "protocol", of=file, updated=with_defaults)


def stale_parts(
    config: GenerationConfig, cfg: float, made_by: dict[str, Any], labels: Tensor, world: World
) -> list[str]:
    """In which names the protocol of a set that is there differs from ``made_by``; none where the set is current.

    Labels count as they are: equal shares give the same images, whatever they are the shares of.
    """
    stale = provenance_of_set(config, cfg).differing(made_by, world)
    if stale == ["labels"]:
        there = ImageArchive(samples_file(config, cfg)).labels
        if there is not None and torch.equal(there, labels[torch.arange(len(there)) % len(labels)]):
            return []
    return stale


def generate_set(
    config: GenerationConfig, drawer: SampleDrawer, cfg: float, made_by: dict[str, Any], shares: ClassShares
) -> None:
    """Draw ``config.sample.count`` images at guidance ``cfg``, unless just these are there."""
    file, world, classes = samples_file(config, cfg), drawer.world, drawer.bundle.model.num_classes
    provenance, folder = provenance_of_set(config, cfg), file.with_name(f".{file.stem}.parts")
    labels = shares.labels(classes, config.sample.count + EXACT_GROUP)
    if not (stale := stale_parts(config, cfg, made_by, labels, world)):
        if world.is_main:
            shutil.rmtree(folder, ignore_errors=True)  # left by a run that ended just after the set was whole
            print(f"samples, cfg {cfg:g}: complete ({file})")
        return
    if file.is_file() and provenance.file.is_file():
        note(f"{file} was drawn in another way ({', '.join(stale)}), and is drawn anew")
    parts = draw_parts(
        folder,
        made_by,
        config.sample.count,
        config.sample.batch,
        lambda indices: drawer.draw(indices, labels, cfg),
        world,
        f"sample, cfg {cfg:g}",
    )
    if world.is_main:
        stopwatch = Stopwatch(folder)
        provenance.file.unlink(missing_ok=True)  # from here on until the end, the file is nobody's
        write_image_archive(file, parts, labels.numpy()[np.arange(config.sample.count) % len(labels)])
        columns = min(10, classes)
        write_sheet(file.with_suffix(".png"), first_images(file, 10 * columns), columns)
        provenance.write(made_by, seconds=stopwatch.seconds(), device=str(world.device))
        shutil.rmtree(folder)
        print(f"samples, cfg {cfg:g}: {config.sample.count} images in {file} ({stopwatch.seconds():.0f} s)")
    world.barrier()


def first_images(file: Path, count: int) -> Tensor:
    """The first ``count`` images of an ``.npz``, uint8 ``(n, 3, H, W)``."""
    return next(ImageArchive(file).batches(count))


def write_sheet(path: Path, images: Tensor, columns: int) -> None:
    save_sheet(path, images, columns, enlarge=2 if images.shape[-1] <= 64 else 1)


def draw_chosen(
    config: GenerationConfig, drawer: SampleDrawer, saved: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """The command's second form: ``--n`` images of ``--classes`` in one file, a class after the other."""
    classes = chosen_classes(arguments.get("classes"), drawer.bundle.model.num_classes, saved)
    out = arguments.get("out", config.folder / "grid.png")
    count, cfg = arguments.get("n", 16), arguments.get("cfg", config.sample.preview_cfg)
    if out.suffix not in (".png", ".npz") or count < 1 or not (cfg >= 0 and math.isfinite(cfg)):
        raise UserError("--out is a .png or .npz, --n is at least 1, --cfg is 0 or more")
    drawer.bundle.model.check_guidance(cfg)
    places = torch.arange(count) * len(classes) // count
    labels = torch.tensor(classes)[places]
    made_by = protocol(config, saved, cfg, labels.tolist()) | {"count": count}
    folder = out.with_name(f".{out.name}.parts")
    parts = draw_parts(
        folder,
        made_by,
        count,
        config.sample.batch,
        lambda indices: drawer.draw(indices, labels, cfg),
        drawer.world,
        f"sample, cfg {cfg:g}",
    )
    if drawer.world.is_main:
        if out.suffix == ".npz":
            write_image_archive(out, parts, labels.numpy())
        else:
            images = torch.from_numpy(np.concatenate([load_part(part) for part in parts])).permute(0, 3, 1, 2)
            columns = min(10, count)
            if 1 < len(classes) <= count:  # a class in every row, which ends in white where it has fewer images
                rows = pad_sequence(images.split(places.bincount().tolist()), batch_first=True, padding_value=255)
                images, columns = rows.flatten(0, 1), rows.shape[1]
            write_sheet(out, images, columns)
        shutil.rmtree(folder)
        print(f"{count} images, cfg {cfg:g}: {out}")
    drawer.world.barrier()


def chosen_classes(words: list[str] | None, count: int, saved: dict[str, Any]) -> list[int]:
    """Numbers of the classes that ``--classes`` names, by a folder's name or else by number; all where it names none."""
    if not words:
        return list(range(count))
    names = {str(name): number for number, name in enumerate(saved["about"].get("class_names") or [])}
    numbers = {str(number): number for number in range(count)}
    chosen = [(numbers | names).get(word, -1) for word in words]  # a folder called 10 is class 10's own name for itself
    if -1 in chosen:
        word = words[chosen.index(-1)]
        raise UserError(
            f"there is no class '{word}': write numbers from 0 to {count - 1}, or the names of the classes' folders"
        )
    return chosen
