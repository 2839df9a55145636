import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.files import write_tensors
from flowprior.run.provenance import Provenance, differing

RECORD = {"images": "a", "size": 32, "labels": [1, 2], "extractor": None}
RECORDS = st.dictionaries(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 1)))


@given(RECORDS, RECORDS)
def test_two_records_differ_in_the_entries_that_one_lacks_or_has_otherwise(kept, wanted):
    same = {name for name in "abcd" if (name in kept) == (name in wanted) and kept.get(name) == wanted.get(name)}
    assert differing(kept, wanted) == [name for name in "abcd" if name not in same]


@pytest.mark.parametrize("kept", [None, [], "images", 3])
def test_what_is_no_record_differs_in_every_entry(kept):
    assert differing(kept, RECORD) == ["extractor", "images", "labels", "size"]
    assert differing(kept, "another text") == ["recipe"] and differing("a text", "a text") == []


@pytest.mark.parametrize("entry", ["", "protocol"])
def test_what_was_written_is_current_until_an_entry_or_the_thing_itself_changes(entry, tmp_path):
    made = tmp_path / "made.npz"
    provenance = Provenance(tmp_path / "made.json", "note", entry, of=made)
    assert provenance.kept() is None and provenance.differing(RECORD, World()) == sorted(RECORD)
    made.touch()
    provenance.write(RECORD, **({"metrics": {"fid": 1.5}} if entry else {}))
    assert provenance.kept() == RECORD and provenance.differing(RECORD, World()) == []
    assert provenance.differing({**RECORD, "size": 64, "crop": "centre"}, World()) == ["crop", "size"]
    assert not entry or json.loads(provenance.file.read_text()) == {"metrics": {"fid": 1.5}, "protocol": RECORD}
    made.unlink()
    assert provenance.kept() is None and provenance.differing(RECORD, World()) == sorted(RECORD)


def test_a_text_beside_tensors_is_compared_and_a_damaged_file_is_as_none(tmp_path):
    provenance = Provenance(tmp_path / "target.safetensors", "target", "made_from")
    write_tensors(provenance.file, {"features": torch.ones(2)}, {"name": "t", "made_from": "ones seed 0"})
    assert provenance.differing("ones seed 0", World()) == [] and provenance.differing("seed 1", World()) == ["recipe"]
    provenance.file.write_bytes(b"damaged")
    assert provenance.differing("ones seed 0", World()) == ["recipe"]


def test_a_damaged_json_file_is_refused(tmp_path):
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match="the evaluation .* cannot be read"):
        Provenance(tmp_path / "evaluation.json", "evaluation").differing(RECORD, World())


def test_what_an_earlier_version_wrote_is_compared_as_todays_and_left_as_it_is(tmp_path):
    provenance = Provenance(tmp_path / "note.json", "note", updated=lambda kept: {"precision": "float32", **kept})
    provenance.write({"seed": 1})
    assert provenance.differing({"seed": 1, "precision": "float32"}, World()) == []
    assert provenance.differing({"seed": 1, "precision": "bfloat16"}, World()) == ["precision"]
    assert provenance.kept() == {"seed": 1}


@dataclass(frozen=True)
class Ahead(World):
    """A process that is through with its look, and writes while this one still waits for the others."""

    file: Path = Path()

    def barrier(self) -> None:
        Provenance(self.file, "note").write(RECORD)


def test_a_process_that_is_ahead_changes_nothing_of_what_the_others_have_seen(tmp_path):
    file = tmp_path / "note.json"
    assert Provenance(file, "note").differing(RECORD, Ahead(file=file)) == sorted(RECORD)
    assert Provenance(file, "note").differing(RECORD, World()) == []
