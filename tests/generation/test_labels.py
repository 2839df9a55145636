"""Which classes the samples are of."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowprior.data.embedded import digit_images
from flowprior.errors import UserError
from flowprior.metrics import Extractor, ImageSet, Statistics, evaluate_generation
from flowprior.run.config import build_config
from generation.labels import EQUAL, choose_shares, class_sequence, mismatch, total_variation
from generation.reference import counts_by_name
from generation.sample_drawer import SampleDrawer
from generation.training_fid import TrainingFID
from mar.config import MARStageConfig

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)


@settings(max_examples=200, deadline=None)
@given(counts=COUNTS)
def test_every_beginning_has_each_class_in_its_share_to_within_one_image_and_the_whole_has_it_exactly(counts):
    sequence = class_sequence(counts, sum(counts))
    taken = np.cumsum(np.eye(len(counts))[sequence], axis=0)  # (N, classes)
    due = np.arange(1, len(sequence) + 1)[:, None] * np.array(counts) / sum(counts)
    assert np.abs(taken - due).max() < 1
    assert taken[-1].tolist() == counts


@given(counts=COUNTS, length=st.integers(0, 40))
def test_a_shorter_sequence_is_the_beginning_of_a_longer_one(counts, length):
    length = min(length, sum(counts))
    assert class_sequence(counts, length) == class_sequence(counts, sum(counts))[:length]


@given(classes=st.integers(1, 20), each=st.integers(1, 10))
def test_equal_counts_give_i_mod_the_number_of_classes(classes, each):
    assert class_sequence([each] * classes, classes * each) == [i % classes for i in range(classes * each)]


def test_nine_to_one_is_nine_to_one():
    labels = class_sequence([540, 60], 50)
    assert labels.count(0) == 45 and labels.count(1) == 5
    assert total_variation([540, 60], [1, 1]) == pytest.approx(0.4)


@pytest.fixture
def unbalanced(tmp_path):
    """A folder of 36 images of one class and 4 of another."""
    for number in range(40):
        file = tmp_path / "data" / f"{'ab'[number >= 36]}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digit_images(32)[0][number].permute(1, 2, 0).numpy()).save(file)
    return tmp_path / "data"


def config_with(tmp_path, data=None, **sections) -> MARStageConfig:
    source = {"source": "folder", "path": str(data)} if data else {}
    sections.setdefault("evaluate", {})["extractor"] = "digits"
    return build_config(MARStageConfig, {"run_dir": str(tmp_path), "data": source, **sections})


SAVED = {"about": {"class_names": ["a", "b"]}, "shape": {"num_classes": 2}}


def test_the_digits_are_so_nearly_balanced_that_their_labels_are_i_mod_ten(tmp_path):
    counts = np.bincount(digit_images(32)[1].numpy()).tolist()
    assert total_variation(counts, [1] * 10) == pytest.approx(0.0060, abs=1e-4)
    assert choose_shares(config_with(tmp_path), {"about": {}}) is EQUAL
    asked = choose_shares(config_with(tmp_path, sample={"class_shares": "data"}), {"about": {}})
    assert np.bincount(asked.labels(10, 1797).numpy()).tolist() == counts


def test_against_the_data_labels_have_the_datas_shares_and_a_generator_knows_those_of_its_own(tmp_path, unbalanced):
    looked = choose_shares(config_with(tmp_path, unbalanced), SAVED)
    known = choose_shares(
        config_with(tmp_path, tmp_path / "gone"), {**SAVED, "about": {**SAVED["about"], "class_counts": [36, 4]}}
    )
    assert looked == known and looked.counts == (36, 4)
    assert np.bincount(looked.labels(2, 20).numpy()).tolist() == [18, 2]
    with pytest.raises(UserError, match="no images at .*gone.*sample.class_shares=equal"):
        choose_shares(config_with(tmp_path, tmp_path / "gone"), SAVED)
    assert choose_shares(config_with(tmp_path, unbalanced, sample={"class_shares": "equal"}), SAVED) is EQUAL
    with pytest.raises(UserError, match="have 2 classes and the generator 3"):
        choose_shares(config_with(tmp_path, unbalanced), {"about": {}, "shape": {"num_classes": 3}})


def test_against_another_reference_shares_are_equal_unless_it_states_its_own(tmp_path, unbalanced):
    images = digit_images(32)[0][:40]
    statistics = ImageSet(images, Extractor("digits")).statistics()
    statistics.save(tmp_path / "adm.npz")  # as ADM's: moments alone, of equal shares
    Statistics(statistics.mu, statistics.sigma, class_counts=(36, 4)).save(tmp_path / "ours.npz")
    pictures = images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "labelled.npz", arr_0=pictures, labels=np.repeat([0, 1], [36, 4]))
    np.savez(
        tmp_path / "both.npz",
        arr_0=pictures,
        arr_1=np.repeat([0, 1], [36, 4]),
        mu=statistics.mu,
        sigma=statistics.sigma,
    )
    np.savez(tmp_path / "three.npz", arr_0=pictures, labels=np.repeat([0, 1, 2], [36, 2, 2]))

    def shares(reference) -> object:
        config = config_with(tmp_path, unbalanced, evaluate={"reference": str(reference)})
        return choose_shares(config, SAVED).counts

    assert shares(tmp_path / "adm.npz") is None is shares(tmp_path / "both.npz") is shares(tmp_path / "three.npz")
    assert shares(tmp_path / "not_there_yet.npz") is None
    Statistics(statistics.mu, statistics.sigma, class_counts=(40,)).save(tmp_path / "one.npz")
    np.savez(tmp_path / "unlabelled.npz", arr_0=pictures, labels=np.zeros(40, np.int64))
    assert (
        shares(tmp_path / "one.npz") is None is shares(tmp_path / "unlabelled.npz")
    )  # one class: nothing is told of others
    assert shares(tmp_path / "ours.npz") == shares(tmp_path / "labelled.npz") == shares(unbalanced) == (36, 4)
    (unbalanced / "b").rename(unbalanced / "c")  # classes of other names
    assert shares(unbalanced) is None


def test_classes_of_one_name_are_not_told_apart_by_it():
    names = ["ant", "crane", "crane"]
    assert counts_by_name((5, 7, 9), names, names) == (5, 7, 9)
    assert counts_by_name((5, 7, 9), names, ["crane", "ant", "crane"]) is None


def test_shares_that_differ_by_more_than_a_little_are_said_with_the_class_that_differs_most():
    told = mismatch([50, 50], [90, 10], ["cat", "dog"])
    assert "class cat: 50.0% against 90.0%" in told and "0.400" in told
    assert mismatch([180, 180, 180], [178, 182, 180], []) == mismatch([], [1, 1], []) == ""
    # A set of labels that has no image of the last class: its share is 0 and not unknown.
    for one, other in (([90, 90], [1, 1, 1]), ([60, 60, 60], [1, 1])):
        assert "class 2: " in mismatch(one, other, []) and "total variation 0.333" in mismatch(one, other, [])
    assert mismatch([7, 8], [70, 72], []) == ""  # whole images come no nearer


def test_the_curve_of_fid_in_training_has_the_same_shares(tmp_path, unbalanced, monkeypatch):
    from types import SimpleNamespace

    from flowprior.distributed import World

    drawn = []

    def draw(self, indices, labels, cfg):
        drawn.extend(int(labels[i % len(labels)]) for i in indices)
        return digit_images(32)[0][: len(indices)]

    monkeypatch.setattr(SampleDrawer, "draw", draw)
    config = config_with(tmp_path, unbalanced, evaluate={"online_count": 20})
    network = SimpleNamespace(model=SimpleNamespace(num_classes=2))
    autoencoder = SimpleNamespace(config=SimpleNamespace(image_size=32))
    drawer = SampleDrawer(network, autoencoder, config.sample, World())
    metrics = TrainingFID(config, drawer, SAVED).measure()
    assert list(metrics) == ["fid_of_20"] and np.bincount(drawn).tolist() == [18, 2]


def test_a_perfect_generator_of_nine_to_one_data_is_near_them_in_their_shares_and_far_from_them_in_equal_ones():
    """Pictures of two colours, 540 and 60 of them; 300 others of the same kind stand for samples."""
    random = np.random.default_rng(0)

    def draw(labels) -> ImageSet:
        tints = np.array([[1, 0, 0], [0, 1, 1]])
        blocks = random.integers(0, 256, (len(labels), 4, 4, 1)).repeat(8, 1).repeat(8, 2)
        images = (blocks * tints[labels][:, None, None] + 40 * np.array(labels).reshape(-1, 1, 1, 1)).clip(0, 255)
        return ImageSet(torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2), Extractor("digits"))

    data = draw([0] * 540 + [1] * 60)
    in_shares, equal = draw(class_sequence([540, 60], 300)), draw([i % 2 for i in range(300)])
    near, far = (evaluate_generation(one, data, ["fid"])["fid"] for one in (in_shares, equal))
    assert near < 0.2 and 9 < far < 11  # over eight seeds: 0.04 to 0.11, and 9.7 to 10.2


def test_classes_in_another_order_are_told_by_their_names():
    assert counts_by_name((3, 1), ("b", "a"), ["a", "b"]) == (1, 3)
    assert counts_by_name((3, 1), ("b", "c"), ["a", "b"]) is None is counts_by_name(None, ("a",), ["a"])
    assert counts_by_name((3, 1), None, ["a", "b"]) == counts_by_name((3, 1), ("b", "a"), []) == (3, 1)


@pytest.mark.parametrize("form", ["folder", "statistics"])
def test_a_references_shares_are_taken_by_name_where_the_generators_classes_stand_in_another_order(
    form, tmp_path, unbalanced
):
    reference = unbalanced
    if form == "statistics":
        statistics = ImageSet(digit_images(32)[0][:40], Extractor("digits")).statistics()
        reference = tmp_path / "named.npz"
        replace(statistics, class_counts=(36, 4), class_names=("a", "b")).save(reference)
    config = config_with(tmp_path, unbalanced, evaluate={"reference": str(reference)})
    assert choose_shares(config, SAVED).counts == (36, 4)
    turned = {"about": {"class_names": ["b", "a"]}, "shape": {"num_classes": 2}}
    assert choose_shares(config, turned).counts == (4, 36)


def test_a_reference_in_nearly_the_datas_shares_is_met_by_the_datas(tmp_path, unbalanced):
    saved = {**SAVED, "about": {**SAVED["about"], "class_counts": [905, 95]}}
    config = config_with(tmp_path, unbalanced, evaluate={"reference": str(unbalanced)})
    shares = choose_shares(config, saved)
    assert shares.counts == (905, 95) and "of the data" in shares.description
    saved["about"]["class_counts"] = [88, 12]
    assert choose_shares(config, saved).counts == (36, 4)
