"""The quick form of every row of the scorecard, and the table of the long one."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from soak import kept, table  # noqa: E402
from soak.files import code_from_files  # noqa: E402
from soak.rows import ROWS, try_row  # noqa: E402
from soak.stages import Soak  # noqa: E402


@pytest.fixture(scope="module")
def soak(tmp_path_factory) -> Soak:
    return Soak(tmp_path_factory.mktemp("soak"), quick=True, seed=0)


@pytest.mark.parametrize("number", ROWS, ids=[f"{number} {row.title}" for number, row in ROWS.items()])
def test_every_trial_of_the_row_holds(number, soak):
    outcome = try_row(ROWS[number], soak)
    if outcome.note:
        pytest.skip(outcome.note)
    assert outcome.tried > 0 and outcome.failures == []


def test_the_pages_table_is_that_of_the_kept_results():
    results = kept.read(kept.RESULTS)
    assert table.in_page(table.PAGE.read_text()) == table.table(results)
    assert list(results) == [str(number) for number in ROWS]
    assert all(row["title"] == ROWS[int(number)].title for number, row in results.items())


def test_a_stage_that_is_tried_again_counts_once(tmp_path):
    file = tmp_path / "results.json"
    for stages, tried in ((["mar", "ae"], 5), (["sit"], 3), (["sit"], 4)):
        kept.add(file, 1, "kill -9", {"stages": stages, "tried": tried})
    assert [part["tried"] for part in kept.read(file)["1"]["parts"]] == [5, 4]
    with pytest.raises(ValueError, match="mar, ae together"):
        kept.add(file, 1, "kill -9", {"stages": ["mar"], "tried": 1})
    kept.add(file, 1, "kill -9", {"stages": ["sit", "ae", "mar"], "tried": 9})
    assert [part["tried"] for part in kept.read(file)["1"]["parts"]] == [9]


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f, Loader)",
        "eval(text)",
    ],
)
def test_the_scan_finds_what_could_run_code_from_a_file(source):
    assert code_from_files(source)


def test_the_scan_passes_over_what_cannot():
    assert code_from_files("np.load(f, allow_pickle=False)\ntorch.load(f, weights_only=True)\nyaml.safe_load(f)") == []
