"""What a study compares: rows, the targets that some of them are aligned to, and lengths of training, as a YAML file says."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from flowprior.errors import UserError
from flowprior.run.config import Section, build_config, option
from flowprior.run.written import read_yaml
from study.stages import GENERATORS

TABLES = Path(__file__).parent / "tables"

P = TypeVar("P")


@dataclass
class Target(Section):
    """What a flow prior is trained on: a preset of stage 1, and options."""

    preset: str = option("", "of stage 1")
    options: str = option("", "of stage 1, as on a command line")


@dataclass
class Length(Section):
    """How long autoencoders train."""

    options: str = option("", "of stage 2, as on a command line")
    seeds: int = option(1000, "reported seeds at most", least=1)
    selects: bool = option(False, "whether the selection seed is run at this length")


@dataclass
class Row(Section):
    """One way of shaping latents.

    Attributes:
        variant_of: set for the entries of a grid by :func:`with_grids`, and by the file where a row differs from another in a detail.
        seeds: "selection" for an entry of a grid, which is never reported.
    """

    shown: str = option("", "the row's name in tables; empty: the key")
    trainer: Literal["tokenizer", "simflow"] = option("tokenizer", "the room whose command trains the autoencoder")
    preset: str = option("", "of stage 2; empty: the table's")
    options: str = option("", "of stage 2, as on a command line")
    target: str = option("", "whose prior the regulariser takes; empty: none")
    generators: tuple[str, ...] = option(("sit",), "which are trained on the latents")
    generator_options: str = option("", "of stage 3, as on a command line")
    weight: str = option("", "the option that weights are tried of, on the selection seed")
    weights: tuple[float, ...] = option((), "those that are tried; the row's own stands in its options")
    variant_of: str = option(
        "", "the row that this one varies; a forecast leaves both out at a time and counts them once"
    )
    seeds: Literal["all", "selection"] = option("all", "the seeds of the row")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.generators) - set(GENERATORS):
            raise ValueError(f"generators are of {', '.join(GENERATORS)}, not {', '.join(sorted(unknown))}")
        if bool(self.weight) != bool(self.weights):
            raise ValueError("weight names an option and weights its values: write both or none")


@dataclass(frozen=True)
class StudyTable:
    """A study of one data set.

    Attributes:
        name: of the data set.
        preset: of every stage, unless a row or a target names another.
        options: of every run of a stage, by ``prior``, ``autoencoder``, a generator's name and ``report``, beside the rows' own.
        selection_seed: whose runs choose weights and guidance scales, and are not reported.
        rows, targets, lengths: by name.
        groups: names of rows by the group's name: those of the file; ``all``; ``grid``, the weights that are tried; and ``minimum``, which is all
            where the file does not say.
    """

    name: str
    preset: str
    options: dict[str, str]
    selection_seed: int
    rows: dict[str, Row]
    targets: dict[str, Target]
    lengths: dict[str, Length]
    groups: dict[str, tuple[str, ...]]

    def chosen_rows(self, names: list[str]) -> dict[str, Row]:
        """Rows by their names and those of groups, in the table's order.

        Raises:
            UserError: there is no such row or group.
        """
        wanted: set[str] = set()
        for name in names:
            if name not in self.rows and name not in self.groups:
                there = ", ".join([*self.groups, *self.rows])
                raise UserError(f"the study {self.name} has no row or group '{name}': there is {there}")
            wanted |= {name} if name in self.rows else set(self.groups[name])
        return {name: row for name, row in self.rows.items() if name in wanted}


def read_table(file: Path) -> StudyTable:
    """The table in a YAML file; a :class:`UserError` that names what is wrong in it."""
    values = read_yaml(file)
    known = {"preset", "options", "selection_seed", "rows", "targets", "lengths", "groups"}
    if unknown := set(values) - known:
        raise UserError(f"the study {file} has no '{min(unknown)}': it has {', '.join(sorted(known))}")
    rows = with_grids(_sections(Row, values, "rows", file))
    targets, lengths = (_sections(cls, values, name, file) for cls, name in ((Target, "targets"), (Length, "lengths")))
    options = _texts(values, "options", file)
    if unknown := set(options) - (known := {"prior", "autoencoder", *GENERATORS, "report"}):
        raise UserError(f"the study {file} has options of '{min(unknown)}': its stages are {', '.join(sorted(known))}")
    if len(selecting := [name for name, length in lengths.items() if length.selects]) > 1:
        raise UserError(
            f"the lengths {' and '.join(selecting)} of {file} both select: one chooses weights and guidance"
        )
    if type(seed := values.get("selection_seed", 0)) is not int or seed < 0:
        raise UserError(f"selection_seed in {file} is a whole number from 0 on, not {seed!r}")
    groups = {name: tuple(words.split()) for name, words in _texts(values, "groups", file).items()}
    groups["grid"] = tuple(name for name, row in rows.items() if row.seeds == "selection")
    groups["all"] = tuple(name for name, row in rows.items() if row.seeds == "all")
    groups.setdefault("minimum", groups["all"])
    for name, row in rows.items():
        if row.target and row.target not in targets:
            raise UserError(f"the row {name} of {file} wants the target '{row.target}', which is not among its targets")
        if row.variant_of and (row.variant_of not in rows or rows[row.variant_of].variant_of):
            raise UserError(
                f"the row {name} of {file} is a variant_of '{row.variant_of}': name a row of it that is no variant itself"
            )
    for name, members in groups.items():
        if missing := [row for row in members if row not in rows]:
            raise UserError(f"the group {name} of {file} names {missing[0]}, which is no row of it")
    return StudyTable(
        file.stem,
        str(values.get("preset", file.stem)),
        options,
        seed,
        rows,
        targets,
        lengths,
        groups,
    )


def _sections(cls: type[P], values: dict[str, Any], name: str, file: Path) -> dict[str, P]:
    entries = values.get(name)
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"the study {file} has no {name}")
    if odd := [key for key in map(str, entries) if not re.fullmatch(r"[\w.-]+", key)]:
        raise UserError(
            f"'{odd[0]}' among the {name} of {file} becomes a folder's name: write letters, digits, _ . and - only"
        )
    return {str(key): build_config(cls, entry or {}, f"{name}.{key}") for key, entry in entries.items()}


def _texts(values: dict[str, Any], name: str, file: Path) -> dict[str, str]:
    """A section of lines of words, by key; empty where there is none."""
    entries = values.get(name) or {}
    if not isinstance(entries, dict) or not all(isinstance(text, str) for text in entries.values()):
        raise UserError(f"the {name} of the study {file} are lines of words by name, such as `name: one two`")
    return {str(key): text for key, text in entries.items()}


def with_grids(rows: dict[str, Row]) -> dict[str, Row]:
    """``rows``, and behind each an entry for every weight that is tried of it but the row's own, whose selection seed says the same."""
    made = {}
    for name, row in rows.items():
        made[name] = row
        tried = {f"{weight:g}": f"{row.weight}={weight:g}" for weight in row.weights}
        for weight, word in tried.items():
            if word not in words_of(row.options):
                made[f"{name}_{weight}"] = replace(
                    row,
                    options=f"{row.options} {word}",
                    variant_of=row.variant_of or name,
                    seeds="selection",
                    weight="",
                    weights=(),
                )
    return made


def words_of(options: str) -> list[str]:
    """Options as a shell reads them; a :class:`UserError` for a quote without end."""
    try:
        return shlex.split(options)
    except ValueError as error:
        raise UserError(f"the options {options!r} cannot be read ({error})") from None
