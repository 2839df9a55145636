"""Real processes on tar shards and Parquet files: two of them as one, killed and resumed, from the index to the figures."""

import pytest
from safetensors.torch import load_file

from flowprior.run.files import tensors_fingerprint
from image_sets import pictures, write_folder, write_parquet, write_shards
from runs import kill_once_it_has_saved, losses, read

# 16 images a step: an epoch of 52 ends within the fourth step, and a block of 8 row groups within the second.
SOME = pictures(52, ("ant", "bee"), size=(40, 36))
WORDS = [
    "regulariser.name=none",
    "evaluate.extractor=",
    "evaluate.metrics=[fidelity]",
    "monitor.images=16",
    "data.flip=true",
    "data.crop=random_resized",
    "train.loader_workers=1",
    "train.checkpoint_steps=5",
]


def autoencoder(run_dir) -> str:
    return tensors_fingerprint(load_file(run_dir / "ae" / "autoencoder" / "model.safetensors"))


def made(scripts, tmp_path, name: str, place, *words: str, processes: str = "1") -> tuple[str, list[float]]:
    """The weights and losses of a run."""
    done = scripts.run("train_ae", *WORDS, *words, run_dir=tmp_path / name, DATA=str(place), NPROC=processes)
    assert done.returncode == 0, done.stderr
    return autoencoder(tmp_path / name), losses(tmp_path / name, "ae")


def test_a_run_on_shards_that_is_killed_within_an_epoch_ends_with_the_bits_of_a_folders(scripts, tmp_path):
    place = write_shards(tmp_path / "shards", SOME, per_shard=9, label="txt")
    wanted, _ = made(scripts, tmp_path, "folder", write_folder(tmp_path / "folder images", SOME))
    command = scripts.command(
        "train_ae", *WORDS, run_dir=tmp_path / "killed", DATA=f"{place}/set-{{000000..000005}}.tar"
    )
    kill_once_it_has_saved(command, tmp_path / "killed" / "ae" / "checkpoints" / "step_00000005")
    assert not (tmp_path / "killed" / "ae" / "autoencoder").exists()
    # Under a pattern, in place of the folder, it is the same data.
    assert made(scripts, tmp_path, "killed", place)[0] == wanted
    assert read(tmp_path / "killed" / "ae" / "evaluation.json")["protocol"]["count"] == 52


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_two_processes_train_on_what_one_trains_on_and_make_one_index(kind, scripts, tmp_path):
    write = write_shards if kind == "tar" else write_parquet
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    place = write(tmp_path / "set", SOME, 9) if kind == "parquet" else write(tmp_path / "set", SOME, 9, "txt")
    words = ["data.shuffle_block=4", "train.accumulation=2"]
    _, two = made(scripts, tmp_path, "two", place, "data.shuffle_block=4", processes="2")
    _, one = made(scripts, tmp_path, "one", place, *words)
    assert two == pytest.approx(one, rel=2e-4)
    kept = [file.name for file in place.iterdir() if file.name.startswith(".")]
    assert len(kept) == (kind == "tar") and all(name.endswith(".index") for name in kept)


def test_stages_3_and_1_take_shards_as_data_and_as_the_reference(scripts, tmp_path):
    place = write_shards(tmp_path / "shards", SOME, per_shard=20, label="txt")
    made(scripts, tmp_path, "run", place)
    words = [
        "data.size=32",
        "evaluate.metrics=[fid]",
        "sample.count=20",
        f"evaluate.reference={place}",
        "sample.cfg=[1]",
    ]
    done = scripts.run("train_mar", *words, run_dir=tmp_path / "run", DATA=str(place))
    assert done.returncode == 0, done.stderr
    assert f"the images in {place} are cropped centrally to the samples' 32 x 32" in done.stderr
    manifest = read(tmp_path / "run" / "latents" / "manifest.json")
    assert manifest["kind"] == "tar" and manifest["class_names"] == ["ant", "bee"]
    assert read(tmp_path / "run" / "mar" / "evaluation.json")["protocol"]["reference"]["count"] == 52
    target = ["target.source=autoencoder", f"target.autoencoder.path={tmp_path / 'run' / 'ae' / 'autoencoder'}"]
    done = scripts.run("train_flowhead", *target, run_dir=tmp_path / "run", DATA=f"{place}/*.tar")
    assert done.returncode == 0, done.stderr
