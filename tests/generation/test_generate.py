import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.training import compilation
from generation import sample_drawer
from generation.generate import chosen_classes
from generation.generator import GeneratorObjective, build_generator
from generation.saved import save_generator
from mar import generate
from mar.config import MARStageConfig
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig

SIZES = dict(width=16, encoder_depth=1, decoder_depth=1, heads=2, buffer_tokens=2, head_width=12, head_depth=1)
SAMPLER = ["model.mar.sampler={ar_steps: 2, head_steps: 2}", "sample.cfg=[2]"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with an autoencoder and a generator of random weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    vit = ViTConfig(width=12, depth=1, heads=3)
    autoencoder = Autoencoder(AutoencoderConfig(32, 16, 4, 3, False, vit, vit))
    autoencoder.save(folder / "ae" / "autoencoder")
    config = MARStageConfig.read("", [f"run_dir={folder}"])
    for name, value in SIZES.items():
        setattr(config.model.mar, name, value)
    shape = {"tokens": 4, "channels": 3, "num_classes": 10}
    bundle = GeneratorObjective(build_generator(config.model, **shape), LatentNormaliser(3)).eval()
    with torch.no_grad():
        for tensor in bundle.state_dict().values():
            tensor.add_(torch.rand(tensor.shape))
    about = {"autoencoder": autoencoder.fingerprint, "class_names": [f"digit {n}" for n in range(10)]}
    save_generator(folder / "mar" / "generator", bundle, config.model, shape, about)
    return folder


@pytest.fixture
def command(run, monkeypatch, capsys):
    """Run the command with words; its exit code and what it said."""

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["generate", f"run_dir={run}", *SAMPLER, *map(str, words)])
        try:
            generate.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return call


@pytest.fixture
def sampled(command, run):
    """Make the set of 37 images anew with options; its images, labels and protocol."""

    def make(*words: str) -> tuple[np.ndarray, np.ndarray, dict]:
        for file in (run / "mar" / "samples").glob("*"):
            file.unlink()
        assert command("sample.count=37", *words)[0] == 0
        with np.load(run / "mar" / "samples" / "cfg_2.npz", allow_pickle=False) as arrays:
            note = json.loads((run / "mar" / "samples" / "cfg_2.json").read_text())
            return arrays["arr_0"], arrays["labels"], note["protocol"]

    return make


@pytest.fixture
def whole(sampled):
    return sampled("sample.exact=true", "sample.batch=64")


@pytest.mark.parametrize("batch", [1, 5, 16, 20])
def test_images_are_the_same_bits_at_any_batch_size_where_that_is_asked_for(sampled, whole, batch):
    images, labels, _ = sampled("sample.exact=true", f"sample.batch={batch}")
    assert np.array_equal(images, whole[0]) and np.array_equal(labels, whole[1])


def test_without_it_they_are_the_same_but_for_rounding(sampled, whole):
    assert np.abs(sampled("sample.batch=5")[0].astype(int) - whole[0]).max() <= 1


def test_compiled_images_are_the_same_but_for_rounding_and_count_as_such(command, sampled, whole, monkeypatch):
    compiled = []

    def compile_parts(model):
        compiled.append(model)
        compilation.compile_parts(model, backend="aot_eager")

    monkeypatch.setattr("generation.generate.compile_parts", compile_parts)
    images = sampled("sample.compile=true")[0]
    assert len(compiled) == 1 and np.abs(images.astype(int) - whole[0]).max() <= 1
    assert "complete" in command("sample.count=37")[1]


def test_every_bit_and_compiled_are_not_asked_for_together(command):
    code, said = command("sample.exact=true", "sample.compile=true")
    assert code == 2 and "write sample.exact=false or sample.compile=false" in said and len(said.splitlines()) == 1


def test_a_shorter_set_is_the_beginning_of_a_longer_one(sampled, whole):
    assert np.array_equal(sampled("sample.exact=true", "sample.count=9")[0], whole[0][:9])


def test_the_file_is_adms_layout_with_every_class_in_turn(whole):
    images, labels, protocol = whole
    assert images.dtype == np.uint8 and images.shape == (37, 32, 32, 3) and images.std() > 5
    assert labels.tolist() == [i % 10 for i in range(37)] and protocol["count"] == 37


class Killed(BaseException):
    pass


def draws_noted(monkeypatch, dies_after: int = 99) -> list[range]:
    drawn, draw = [], sample_drawer.SampleDrawer.draw

    def noted(self, indices, labels, cfg):
        if len(drawn) == dies_after:
            raise Killed
        drawn.append(indices)
        return draw(self, indices, labels, cfg)

    monkeypatch.setattr(sample_drawer.SampleDrawer, "draw", noted)
    return drawn


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_killed_sampling_goes_on_where_it_was_and_ends_with_the_same_images(command, sampled, run, monkeypatch, done):
    expected = sampled("sample.batch=10")[0]
    for file in (run / "mar" / "samples").glob("*"):
        file.unlink()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        draws_noted(patch, dies_after=done)
        command("sample.count=37", "sample.batch=10")
    assert not (run / "mar" / "samples" / "cfg_2.npz").exists()
    drawn = draws_noted(monkeypatch)
    assert command("sample.count=37", "sample.batch=10")[0] == 0 and len(drawn) == 4 - done
    with np.load(run / "mar" / "samples" / "cfg_2.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], expected)
    assert {f.name for f in (run / "mar" / "samples").iterdir()} == {"cfg_2.npz", "cfg_2.json", "cfg_2.png"}


def test_the_seconds_of_a_set_are_those_of_all_runs_that_drew_its_parts(command, run, monkeypatch):
    samples = run / "mar" / "samples"
    for file in samples.glob("*"):
        file.unlink()
    for earlier, words, least in ((1, [], 0), (1, ["sample.seed=1"], 0), (2, ["sample.seed=1"], 500)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            draws_noted(patch, dies_after=earlier)
            command("sample.count=37", "sample.batch=10", *words)
        kept = samples / ".cfg_2.parts" / "seconds"
        assert least <= float(kept.read_text()) < least + 400
        kept.write_text("500")
    code, said = command("sample.count=37", "sample.batch=10", "sample.seed=1")
    seconds = json.loads((samples / "cfg_2.json").read_text())["seconds"]
    assert code == 0 and 500 < seconds < 900 and f"({seconds:.0f} s)" in said


def test_parts_of_other_options_are_not_used(command, sampled, run, monkeypatch):
    expected = sampled("sample.batch=10", "sample.seed=1")[0]
    for file in (run / "mar" / "samples").glob("*"):
        file.unlink()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        draws_noted(patch, dies_after=2)
        command("sample.count=37", "sample.batch=10")
    assert command("sample.count=37", "sample.batch=10", "sample.seed=1")[0] == 0
    with np.load(run / "mar" / "samples" / "cfg_2.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], expected)


def test_a_complete_set_stays_and_one_of_other_options_is_made_anew_with_a_note(command, sampled, run, monkeypatch):
    sampled()
    notes = []
    monkeypatch.setattr("generation.generate.note", notes.append)
    assert "complete" in command("sample.count=37")[1]
    assert "complete" in command("sample.count=37", "sample.batch=3")[1]
    assert "complete" in command("sample.count=37", "model.mar.sampler.cuda_graphs=true")[1]
    assert not notes
    assert "37 images" in command("sample.count=37", "model.mar.sampler.head_steps=3")[1]
    (text,) = notes
    assert text.endswith("cfg_2.npz was drawn in another way (sampler), and is drawn anew")
    (run / "mar" / "samples" / "cfg_2.json").unlink()  # as a kill while the set is written leaves it
    assert "37 images" in command("sample.count=37")[1] and len(notes) == 1


def test_a_note_from_before_an_option_was_there_counts_as_its_default(command, sampled, run):
    sampled()
    file = run / "mar" / "samples" / "cfg_2.json"
    note = json.loads(file.read_text())
    for name in ("precision", "exact"):
        note["protocol"].pop(name)
    for name in ("head_evaluations", "skip_unread", "encoder_every", "cfg_interval"):
        note["protocol"]["sampler"].pop(name)
    note["protocol"]["sampler"]["cuda_graphs"] = True  # which was part of it once
    file.write_text(json.dumps(note))
    assert "complete" in command("sample.count=37")[1]
    assert "complete" not in command("sample.count=37", "model.mar.sampler.encoder_every=2")[1]


def test_chosen_classes_fill_a_grid_with_a_class_in_every_row(command, run, tmp_path):
    grid = tmp_path / "pictures" / "grid.png"
    assert command("--classes", 7, "digit 3", "--cfg", 3, "--n", 8, "--out", grid)[0] == 0
    assert Image.open(grid).size == (2 + 4 * 66, 2 + 2 * 66)
    assert [f.name for f in grid.parent.iterdir()] == ["grid.png"]
    assert command("--n", 3)[0] == 0 and (run / "mar" / "grid.png").is_file()


def test_a_grid_has_a_class_in_every_row_where_the_images_do_not_divide_among_them(command, tmp_path):
    whole, apart, classes = tmp_path / "grid.png", tmp_path / "some.npz", (5, 1, 8)
    for file in (whole, apart):
        assert command("--classes", *classes, "--cfg", 2, "--n", 8, "--out", file, "sample.exact=true")[0] == 0
    with np.load(apart, allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"], arrays["labels"]
    sheet = np.asarray(Image.open(whole))[:-2, :-2].reshape(3, 66, 3, 66, 3).swapaxes(1, 2)[:, :, 2::2, 2::2]
    for row, label in zip(sheet, classes):
        own = images[labels == label]
        assert np.array_equal(row[: len(own)], own) and (row[len(own) :] == 255).all()
    assert sorted((labels == label).sum() for label in classes) == [2, 3, 3]


def test_chosen_classes_fill_an_npz_and_images_keep_their_seeds(command, tmp_path):
    file = tmp_path / "some.npz"
    assert command("--classes", 0, 1, "--cfg", 2, "--n", 6, "--out", file, "sample.batch=4")[0] == 0
    with np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"], arrays["labels"]
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and images.shape == (6, 32, 32, 3)
    assert command("--out", file, "--n", 3, "--cfg", 2, "--classes", 0, "sample.exact=true")[0] == 0
    with np.load(file, allow_pickle=False) as arrays:
        assert np.abs(arrays["arr_0"].astype(int) - images[:3]).max() <= 1


@pytest.mark.parametrize(
    "words, said",
    [
        (["--classes", "10"], "no class '10'"),
        (["--classes", "digit"], "no class 'digit'"),
        (["--n", "0"], "--n"),
        (["--out", "grid.jpg"], ".png or .npz"),
        (["--cfg", "-1"], "--cfg"),
        (["--cfg", "high"], "high"),
        (["--classes"], "--classes"),
        (["--clases", "1"], "clases"),
    ],
)
def test_mistakes_are_said_in_one_line(command, words, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, line = command(*words)
    assert code == 2 and said in line and len(line.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_class_is_called_by_its_folders_name_before_its_number():
    folders = sorted(str(number) for number in range(12))  # 0, 1, 10, 11, 2, ...
    about = {"about": {"class_names": folders}}
    assert [folders[number] for number in chosen_classes(["10", "2", "0"], 12, about)] == ["10", "2", "0"]
    assert chosen_classes(["10"], 12, {"about": {"class_names": ["cat"] * 12}}) == [10]


@pytest.fixture
def unbalanced(run):
    """The generator says that its data had these images of each class."""
    file = run / "mar" / "generator" / "config.json"
    before = file.read_text()
    config = json.loads(before)
    config["about"]["class_counts"] = COUNTS
    file.write_text(json.dumps(config))
    yield COUNTS
    file.write_text(before)


COUNTS = [18, 2, 4, 3, 1, 1, 1, 1, 3, 3]


def test_classes_come_in_the_datas_shares_and_images_do_not_depend_on_the_batch(sampled, unbalanced):
    images, labels, protocol = sampled("sample.exact=true", "sample.batch=64")
    assert np.bincount(labels).tolist() == COUNTS and protocol["labels"].startswith("in the class shares of the data (")
    again, same, _ = sampled("sample.exact=true", "sample.batch=7")
    assert np.array_equal(images, again) and np.array_equal(labels, same)


def test_an_image_is_that_of_its_label_and_seed_whatever_the_shares(sampled, whole, unbalanced):
    """Where the two orders of labels agree, the images do."""
    images, labels, _ = sampled("sample.exact=true")
    alike = labels == whole[1]
    assert 0 < alike.sum() < len(alike)
    assert np.array_equal(images[alike], whole[0][alike]) and not np.array_equal(images[~alike], whole[0][~alike])


def test_sets_of_equal_shares_are_stale_once_others_are_asked_for(sampled, command, unbalanced):
    sampled("sample.class_shares=equal")
    assert "complete" in command("sample.count=37", "sample.class_shares=equal")[1]
    assert "37 images" in command("sample.count=37")[1]


def test_chosen_classes_need_no_data(command, tmp_path):
    words = ["data.source=folder", f"data.path={tmp_path / 'gone'}", "--classes", "3", "--n", "2"]
    assert command(*words, "--out", tmp_path / "some.npz")[0] == 0
    code, said = command("sample.count=5", *words[:2])
    assert code == 2 and "sample.class_shares=equal" in said
