"""What is to be run: cells, the stages of each with their words, and the flow priors that cells share. Pure functions of a table."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.data.images import ImageConfig
from study.stages import AUTOENCODERS, GENERATORS, PRIOR, REPORT, Stage
from study.table import Row, StudyTable, words_of


@dataclass(frozen=True)
class Cell:
    """One run of a row: what a JSON file is kept of."""

    row: str
    length: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}_{self.length}_seed{self.seed}"


class Command(NamedTuple):
    """What runs as one process: its stage's name, its own (``sit train``), and all that follows ``python -m``."""

    stage: str
    name: str
    words: list[str]


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its words.

    Attributes:
        name: ``prior``, ``autoencoder``, a generator's, or ``report``.
    """

    name: str
    stage: Stage
    run_dir: Path
    words: tuple[str, ...]

    @property
    def commands(self) -> Iterator[Command]:
        """One after the other."""
        for command in self.stage.commands:
            yield Command(self.name, " ".join(command), [*command, *self.words, *self.stage.place(self.run_dir)])

    def config(self) -> Any:
        """What the stage's commands read; a :class:`UserError` for words that they would refuse."""
        return copy.deepcopy(_read_once(self.stage, (*self.words, *self.stage.place(self.run_dir))))


@dataclass(frozen=True)
class Task:
    """What runs at a stretch: a flow prior, a cell, or the latent report of a cell's autoencoder.

    Attributes:
        name: of its folder and its log.
        stages: one after the other.
        after: the task whose prior or autoencoder it takes; empty: none.
        cell: None of a flow prior.
        is_report: whether it is a cell's report.
    """

    name: str
    run_dir: Path
    stages: tuple[PlannedStage, ...]
    after: str = ""
    cell: Cell | None = None
    is_report: bool = False

    @property
    def commands(self) -> list[Command]:
        """Of all stages."""
        return [command for stage in self.stages for command in stage.commands]


@dataclass(frozen=True)
class Plan:
    """Where runs lie, and what every stage's words begin with.

    Attributes:
        table: of the study.
        runs: the folder of its run folders.
        extra: further words of every stage.
    """

    table: StudyTable
    runs: Path
    extra: tuple[str, ...] = ()

    def cells(self, rows: list[str], lengths: list[str], seeds: int) -> list[Cell]:
        """The cells of rows (or groups) at lengths: seed by seed, so that whatever is finished first compares all rows.

        Args:
            rows, lengths: by name.
            seeds: how many are reported, those that follow the selection seed; it comes first, at the lengths that select.
        """
        table, chosen = self.table, self.table.chosen_rows(rows)
        made = []
        for number in range(seeds + 1):
            for length in lengths:
                options = table.lengths[length]
                wanted = options.selects if number == 0 else number <= options.seeds
                named = [name for name, row in chosen.items() if row.seeds == "all" or number == 0]
                made += [Cell(name, length, table.selection_seed + number) for name in named if wanted]
        return made

    def task(self, cell: Cell) -> Task:
        """All stages of a cell, after its prior."""
        row, folder = self.table.rows[cell.row], self.runs / cell.name
        after = f"prior_{row.target}_seed{cell.seed}" if row.target else ""
        stages = [
            self._autoencoder(cell, row, folder),
            *(self._generator(n, cell, row, folder) for n in row.generators),
        ]
        return Task(cell.name, folder, tuple(stages), after, cell)

    def prior_task(self, target: str, seed: int) -> Task:
        """The flow prior of a target and a seed, which all rows and lengths share."""
        section, name = self.table.targets[target], f"prior_{target}_seed{seed}"
        words = self._words("prior", section.preset, section.options, f"train.seed={seed}")
        return Task(name, self.runs / name, (PlannedStage("prior", PRIOR, self.runs / name, words),))

    def tasks(self, cells: list[Cell]) -> list[Task]:
        """The tasks of ``cells``, each flow prior before the first cell that takes it."""
        made: dict[str, Task] = {}
        for cell in cells:
            if target := self.table.rows[cell.row].target:
                prior = self.prior_task(target, cell.seed)
                made.setdefault(prior.name, prior)
            made[cell.name] = self.task(cell)
        return list(made.values())

    def stages_of(self, cell: Cell) -> list[PlannedStage]:
        """All that a cell's figures depend on, its flow prior first."""
        target = self.table.rows[cell.row].target
        return [*(self.prior_task(target, cell.seed).stages if target else ()), *self.task(cell).stages]

    def report_task(self, cell: Cell) -> Task:
        """The latent report of a cell's autoencoder, after the cell."""
        stage = self.report_stages(cell)[-1]
        return Task(f"{cell.name}.report", stage.run_dir, (stage,), cell.name, cell, is_report=True)

    def report_stages(self, cell: Cell) -> list[PlannedStage]:
        """All that the figures of a cell's report depend on, the report last."""
        before = [stage for stage in self.stages_of(cell) if stage.name in ("prior", "autoencoder")]
        words = (*words_of(self.table.options.get("report", "")), *_image_words(before[-1].config().data))
        return [*before, PlannedStage("report", REPORT, self.runs / cell.name, words)]

    def _autoencoder(self, cell: Cell, row: Row, folder: Path) -> PlannedStage:
        length = self.table.lengths[cell.length].options
        words = self._words("autoencoder", row.preset, length, row.options, f"train.seed={cell.seed}")
        if row.target:
            prior = self.prior_task(row.target, cell.seed).run_dir / PRIOR.folder / "prior"
            words += (f"prior={prior}",)
        return PlannedStage("autoencoder", AUTOENCODERS[row.trainer], folder, words)

    def _generator(self, name: str, cell: Cell, row: Row, folder: Path) -> PlannedStage:
        seeds = f"train.seed={cell.seed} sample.seed={cell.seed}"
        return PlannedStage(name, GENERATORS[name], folder, self._words(name, "", row.generator_options, seeds))

    def _words(self, stage: str, preset: str, *options: str) -> tuple[str, ...]:
        """Later words win, as on a command line."""
        own = [word for text in (self.table.options.get(stage, ""), *options) for word in words_of(text)]
        return ("--preset", preset or self.table.preset, *own, *self.extra)


@functools.cache
def _read_once(stage: Stage, words: tuple[str, ...]) -> Any:
    """A study asks for the same config many times, and reading presets takes longer than all else that it does by itself."""
    return stage.read(list(words))


def _image_words(data: ImageConfig) -> tuple[str, ...]:
    """What names the images that an autoencoder was trained on, as they are."""
    usual, names = ImageConfig(), ("source", "path", "subset", "split_seed", "image_column", "label_column", "skip_bad")
    return tuple(f"data.{n}={value}" for n in names if (value := getattr(data, n)) != getattr(usual, n))
