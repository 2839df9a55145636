"""What an evaluation that is there says already: figures that hold on when further guidance scales are measured by the same protocol."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowprior.notes import note
from flowprior.run.files import read_json
from flowprior.run.provenance import differing
from generation.config import GenerationConfig

IN_WORDS = {
    "fdr": "extractors or baseline of FDr",
    "metric_weights": "weights of metrics",
    "half_half_splits": "halves of the real images",
    "inception_score": "splits of the inception score",
}


@dataclass(frozen=True)
class Earlier:
    """Figures that need not be measured again.

    Attributes:
        metrics: by the name of their set.
        not_measured: why some are missing, likewise.
        protocols: of these sets.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, Any] = field(default_factory=dict)
    protocols: dict[str, Any] = field(default_factory=dict)


def earlier_figures(config: GenerationConfig, file: Path, kept: Any, made_by: dict[str, Any]) -> Earlier:
    """Of the run's own sets in ``file``: those drawn and measured as ``made_by`` says, but for the guidance scale.

    Args:
        config: of the stage.
        file: an evaluation.
        kept: its protocol; None where there is none.
        made_by: the protocol of today.
    """
    if not (config.evaluate.samples_have_labels and isinstance(kept, dict) and isinstance(kept.get("samples"), dict)):
        return Earlier()
    if set(differing(kept, made_by)) - {"samples"}:
        return Earlier()
    drawn = [_but_for_guidance(one) for one in made_by["samples"].values()]
    result = read_json(file, "evaluation")
    told = (result.get("metrics", {}), result.get("not_measured", {}))
    sets = {
        name: one
        for name, one in kept["samples"].items()
        if name in told[0] and one == made_by["samples"].get(name, one) and _but_for_guidance(one) in drawn
    }
    return Earlier(*({name: part[name] for name in sets if name in part} for part in told), sets)


def say_what_changes(file: Path, kept: Any, made_by: dict[str, Any]) -> None:
    """One line on stderr where an evaluation is replaced, or goes on with what it says."""
    if not isinstance(kept, dict):
        return
    stale, before = differing(kept, made_by), list(kept.get("samples") or {})
    gone = [name for name in before if name not in made_by["samples"]]
    if stale == ["samples"] and not gone and all(kept["samples"][name] == made_by["samples"][name] for name in before):
        note(f"{file} keeps what it says of cfg {', '.join(before)}, which was measured by the same protocol")
        return
    lost = f"; what it says of cfg {', '.join(gone)} is not measured again" if gone else ""
    note(
        f"{file} was measured with other {' and '.join(IN_WORDS.get(name, name) for name in stale)}, and is replaced{lost}"
    )


def by_guidance(sets: dict[str, Any], config: GenerationConfig) -> dict[str, Any]:
    """What there is of several sets, the run's own in the order of their guidance scales."""
    if not config.evaluate.samples_have_labels:
        return sets
    return {name: sets[name] for name in sorted(sets, key=float)}


def _but_for_guidance(protocol: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in protocol.items() if name != "cfg"}
