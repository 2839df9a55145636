"""What is measured of a tokenizer is kept, group by group: a report that was stopped goes on, and one of a further tokenizer measures that alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.config import changed_options, to_dict
from flowprior.run.files import file_sha256, read_tensors, tensors_metadata, write_tensors
from flowprior.run.hub import saved_folder
from flowprior.run.provenance import differing
from latent_report.bootstrap import Estimate
from latent_report.config import PROTOCOL_VERSION, ReportConfig
from latent_report.measure import Results
from latent_report.measure_images import networks
from latent_report.opening import ImageOptions, made_of

FOLDER = "measured"  # in the report's
IN_WORDS = {
    "tokenizer": "its files",
    "images": "images",
    "labels": "labels",
    "networks": "weights of the extractor, LPIPS or features",
    "prior": "prior",
    "version": "version of the figures",
}


def made_from(named: str, config: ReportConfig, options: ImageOptions) -> dict[str, Any]:
    """All that the figures of the tokenizer ``named`` depend on, as fingerprints and plain values.

    Raises:
        UserError: there is no such tokenizer, or what the config names is not there.
    """
    files, side = made_of(named)
    made = {"version": PROTOCOL_VERSION, "tokenizer": files, "options": to_dict(config)}
    if config.labels:
        made["labels"] = file_sha256(Path(config.labels))[:16]
    if config.prior:
        made["prior"] = _of_prior(config.prior)
    if side is not None:
        source, made["images"] = options.images(side or config.data.size)
        made["networks"] = networks(config, source.kind)
    return made


def _of_prior(prior: str) -> dict[str, str]:
    folder = saved_folder(prior, "flow prior")
    files = [*sorted(folder.glob("*.json")), *sorted(folder.glob("*.safetensors"))]
    return {file.name: file_sha256(file)[:16] for file in files if file.is_file()}


def what_changed(kept: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In words, what two records of :func:`made_from` do not share; none where the same would be measured."""
    names = [name for name in differing(kept, wanted) if name != "options"]
    told = [IN_WORDS.get(name, name) for name in names]
    return told + changed_options(ReportConfig, kept.get("options") or {}, wanted["options"])


@dataclass(frozen=True)
class Kept:
    """One tokenizer's file.

    Attributes:
        file: a safetensors file of the pictures, with all else beside them as JSON.
        made_from: of today, see above.
    """

    file: Path
    made_from: dict[str, Any]

    @classmethod
    def of(cls, named: str, config: ReportConfig, options: ImageOptions) -> Kept:
        """The file of the tokenizer ``named`` in the report's folder."""
        where = os.path.abspath(named) if os.path.exists(named) else named
        readable = re.sub(r"[^\w.-]+", "_", "_".join(Path(where).parts[-2:]))[-60:]
        name = f"{readable}-{hashlib.sha256(where.encode()).hexdigest()[:8]}.safetensors"
        return cls(Path(config.out) / FOLDER / name, made_from(named, config, options))

    def read(self, name: str) -> tuple[Results, dict[str, Any]]:
        """What was measured, and what the report says of the latents; both empty where there is nothing or it is stale, which is said.

        Args:
            name: of the tokenizer, for the note.
        """
        empty: tuple[Results, dict[str, Any]] = Results(), {}
        if not self.file.is_file():
            return empty
        with contextlib.suppress(UserError, ValueError, KeyError, TypeError, AttributeError):  # of a damaged file
            texts = tensors_metadata(self.file)
            before = json.loads(texts["made_from"])
            if told := what_changed(before, self.made_from):
                note(f"{name}: measured anew, since {'; '.join(told[:3])} changed ({self.file})")
                return empty
            said = json.loads(texts["results"])
            pictures = read_tensors(self.file, "pictures")
            estimates = {key: Estimate(*pair) for key, pair in said.pop("figures").items()}
            ordered = {caption: pictures[caption] for caption in said.pop("pictures")}
            return Results(figures=estimates, pictures=ordered, **said), json.loads(texts["latents"])
        note(f"{name}: measured anew, since what was kept of it is damaged ({self.file})")
        return empty

    def write(self, results: Results, latents: dict[str, Any]) -> None:
        """Keep what has been measured so far, whole or not at all.

        Args:
            results: of some of the groups.
            latents: what the report says of the latents.
        """
        said = {
            "figures": {name: [_number(part) for part in estimate] for name, estimate in results.figures.items()},
            "curves": {
                name: {axis: None if values is None else _list(values) for axis, values in curve.items()}
                for name, curve in results.curves.items()
            },
            "pictures": list(results.pictures),
            **{name: getattr(results, name) for name in ("left_out", "remarks", "weights", "seconds")},
        }
        texts = {"made_from": self.made_from, "results": said, "latents": latents}
        write_tensors(self.file, results.pictures, {name: json.dumps(text) for name, text in texts.items()})


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _list(values: Any) -> list[float]:
    return values if isinstance(values, list) else values.double().tolist()
