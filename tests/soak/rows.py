"""The scorecard's rows."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from soak import (
    alike,
    evaluation,
    files,
    kills,
    large_index,
    malformed,
    non_finite,
    resume,
    saves,
    sizes,
    wordless,
    writers,
)
from soak.stages import STAGES, TRAINED, CannotTry, Soak, Trial


@dataclass(frozen=True)
class Row:
    """One line of the scorecard; ``each`` are the stages that it goes through one by one, if it does."""

    title: str
    trials: Callable[[Soak], Iterator[Trial]]
    each: Collection[str] = ()

    def stages(self, soak: Soak) -> list[str]:
        """Those of them that are tried."""
        return [name for name in self.each if name in soak.stages]


@dataclass
class Outcome:
    """How often it was tried, and how often it held."""

    tried: int = 0
    held: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""


ROWS = {
    1: Row("kill -9", kills.kill_and_resume, STAGES),
    2: Row("crash points in a save", saves.crash_points),
    3: Row("resume at every step", resume.every_step, TRAINED),
    4: Row("state is complete", resume.complete_state, TRAINED),
    5: Row("world size", sizes.world_sizes, TRAINED),
    6: Row("determinism", sizes.fresh_runs, TRAINED),
    7: Row("coverage", sizes.coverage),
    8: Row("latent cache", evaluation.latent_cache),
    9: Row("non-finite", non_finite.injected, TRAINED),
    10: Row("malformed input", malformed.malformed),
    11: Row("fuzz", files.mutations),
    12: Row("no code in files", files.no_code),
    13: Row("disk full", saves.full_disk, STAGES),
    14: Row("two writers", writers.two_writers),
    15: Row("SIGTERM, lost rank", kills.signals, STAGES),
    16: Row("evaluation input", evaluation.evaluation_input),
    17: Row("like with like", alike.alike),
    18: Row("nothing without a word", wordless.nothing_without_a_word),
    19: Row("a million samples in shards", large_index.large_index),
}


def try_row(row: Row, soak: Soak, report: Callable[[str], object] = lambda failure: None) -> Outcome:
    """All trials of a row, each failure reported as it comes; one that raises has not held."""
    outcome = Outcome()
    try:
        for label, problem in row.trials(soak):
            outcome.tried += 1
            outcome.held += problem is None
            if problem is not None:
                outcome.failures.append(f"{label}: {problem}")
                report(outcome.failures[-1])
    except CannotTry as error:
        outcome.note = f"not tried here: {error}"
    except Exception:
        outcome.tried += 1
        outcome.failures.append(traceback.format_exc())
        report(outcome.failures[-1])
    return outcome
