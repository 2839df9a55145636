import weakref

import numpy as np
import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset

from flowprior.data.embedded import digit_images
from flowprior.errors import UserError
from flowprior.metrics.extractors import Extractor, Features
from flowprior.metrics.fid import half_half_fid, note_few
from flowprior.metrics.generation import evaluate_generation
from flowprior.metrics.image_set import ImageSet
from flowprior.metrics.inception_score import split_protocol
from flowprior.metrics.registry import METRICS, MetricSpec
from flowprior.metrics.statistics import Statistics, StreamingMoments
from known_features import OfFeatures

DIGITS = Extractor("digits")


def set_of(points: torch.Tensor, logits: torch.Tensor | None = None) -> ImageSet:
    points = points.float()
    return OfFeatures(Features(points, torch.zeros(len(points), 10) if logits is None else logits, points, "digits"))


def subset(images: ImageSet, indices: torch.Tensor) -> ImageSet:
    return OfFeatures(images.features().subset(indices))


def with_moments(
    count: int, mean: torch.Tensor, deviations: torch.Tensor, rotation: torch.Tensor, seed: int
) -> ImageSet:
    """Points whose sample mean is ``mean`` and whose sample covariance is ``R diag(deviations^2) R^T``, both exactly."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = torch.linalg.qr(x - x.mean(0)).Q * (count - 1) ** 0.5
    return set_of(x * deviations @ rotation.T + mean)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return ImageSet(digit_images(32)[0], DIGITS)


@pytest.mark.parametrize("count, said", [(10, True), (11, False)])
def test_an_fid_of_no_more_images_than_dimensions_is_remarked_on(count, said, capsys):
    points = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    evaluate_generation(set_of(points[:count]), set_of(points), ["fid"], {})
    assert (f"FID is of {count} images on features of 10 dimensions" in capsys.readouterr().err) == said


@pytest.mark.parametrize("reference_as", ["features", "statistics"])
def test_fid_of_gaussians_with_common_axes_is_the_closed_form(reference_as):
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))).Q
    means = torch.tensor([[0.0, 0, 0, 0, 0], [1.0, -2, 0, 0.5, 3]], dtype=torch.float64)
    deviations = torch.tensor([[1.0, 2, 0.5, 1, 3], [2.0, 1, 0.5, 4, 1]], dtype=torch.float64)
    first, second = (with_moments(400, means[i], deviations[i], rotation, seed=i) for i in (0, 1))
    reference = second if reference_as == "features" else second.statistics()
    expected = float((means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum())
    assert evaluate_generation(first, reference, ["fid"])["fid"] == pytest.approx(expected, rel=1e-5)


def test_fid_of_a_set_with_itself_is_zero(digits):
    assert abs(evaluate_generation(digits, digits, ["fid"])["fid"]) < 1e-6


def test_streamed_moments_give_the_fid_of_the_features(digits):
    images = digit_images(32)[0][torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
    generated, real = ImageSet(images[:600], DIGITS), ImageSet(images[600:], DIGITS)
    moments = StreamingMoments()
    for batch in images[600:].split(100):
        moments.update(DIGITS(batch).fid)
    streamed = evaluate_generation(generated, moments.statistics("digits"), ["fid"])["fid"]
    never_kept = evaluate_generation(generated, real, ["fid"])["fid"]
    assert not real._features
    real.features()
    assert (
        streamed
        == pytest.approx(never_kept, rel=1e-5)
        == pytest.approx(evaluate_generation(generated, real, ["fid"])["fid"], rel=1e-5)
    )


def test_a_pass_over_the_images_is_made_once_whatever_the_order_of_the_metrics():
    images, labels = digit_images(32)
    passes = []

    def batches(which):
        passes.append(which)
        return images[:200].split(64)

    generated, real = (
        ImageSet(lambda which=which: batches(which), DIGITS, labels[:200]) for which in ("generated", "real")
    )
    result = evaluate_generation(generated, real, ["fid", "inception_score", "precision_recall"])
    assert sorted(passes) == ["generated", "real"]
    assert list(result) == ["fid", "inception_score", "inception_score_std", "precision", "recall"]


def test_batches_are_taken_one_at_a_time():
    held = []

    def batches():
        for start in range(0, 30, 10):
            batch = digit_images(32)[0][start : start + 10].clone()
            held.append(weakref.ref(batch))
            assert sum(ref() is not None for ref in held) <= 2
            yield batch
            del batch

    assert ImageSet(batches, DIGITS).statistics().count == 30 and len(held) == 3


class Pictures(Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.images[index]


def test_all_numbers_equal_torch_fidelitys_own_pipeline_on_the_same_images():
    real = digit_images(32)[0]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-80, 80, (500, 3, 32, 32), generator=generator)
    fake = (real[:500].int() + noise).clamp(0, 255).to(torch.uint8)
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(fake), input2=Pictures(real), feature_extractor="digits-cnn", fid=True, isc=True, prc=True,
        cuda=False, cache=False, save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    ours = evaluate_generation(*(ImageSet(images, DIGITS) for images in (fake, real)))
    names = {
        "fid": torch_fidelity.KEY_METRIC_FID,
        "inception_score": torch_fidelity.KEY_METRIC_ISC_MEAN,
        "inception_score_std": torch_fidelity.KEY_METRIC_ISC_STD,
        "precision": torch_fidelity.KEY_METRIC_PRECISION,
        "recall": torch_fidelity.KEY_METRIC_RECALL,
    }
    assert ours.keys() == names.keys() and ours["fid"] > 0.01
    assert ours == pytest.approx({name: theirs[key] for name, key in names.items()}, rel=1e-4)


def test_inception_score_is_ten_for_certain_even_classes_and_one_for_no_idea():
    labels = torch.arange(10).repeat(2000)
    certain = set_of(torch.zeros(20000, 2), torch.nn.functional.one_hot(labels, 10) * 50.0)
    assert evaluate_generation(certain, certain, ["inception_score"])["inception_score"] == pytest.approx(10, rel=0.01)
    unsure = set_of(torch.zeros(100, 2), torch.ones(100, 10))
    assert evaluate_generation(unsure, unsure, ["inception_score"])["inception_score"] == pytest.approx(1)


def clusters(*centres: float) -> ImageSet:
    points = [torch.randn(50, 8, generator=torch.Generator().manual_seed(round(abs(c)))) + c for c in centres]
    return set_of(torch.cat(points))


@pytest.mark.parametrize(
    "generated, real, precision, recall",
    [
        ((0, 500), (0, 500), 1, 1),
        ((0,), (0, 500), 1, 0.5),
        ((0, 500), (0,), 0.5, 1),
        ((900,), (0, 500), 0, 0),
        ((0, 900), (0, 500), 0.5, 0.5),
    ],
)
def test_precision_and_recall_count_the_clusters_that_are_shared(generated, real, precision, recall):
    result = evaluate_generation(clusters(*generated), clusters(*real), ["precision_recall"])
    assert result == {"precision": precision, "recall": recall}


def test_without_names_every_metric_is_computed_that_applies(digits):
    images, labels = digit_images(32)
    moments = {"fid", "inception_score", "inception_score_std"}
    statistics = digits.statistics()
    assert set(evaluate_generation(digits, statistics)) == moments
    assert set(evaluate_generation(digits, digits)) == moments | {"precision", "recall"}
    labelled = evaluate_generation(ImageSet(images, DIGITS, labels), statistics)
    assert set(labelled) == moments | {"recognised"} and labelled["recognised"] > 0.985


def test_a_named_metric_that_does_not_apply_is_refused(digits):
    with pytest.raises(UserError, match="precision_recall.*give the images of the reference"):
        evaluate_generation(digits, digits.statistics(), ["precision_recall"])
    with pytest.raises(UserError, match="recognised.*labels"):
        evaluate_generation(digits, digits, ["recognised"])


def test_mistakes_are_named(digits):
    with pytest.raises(UserError, match="did you mean 'fid'"):
        evaluate_generation(digits, digits, ["fidd"])
    with pytest.raises(UserError, match="digits features of 64 dimensions.*unknown features of 2048"):
        evaluate_generation(digits, Statistics(np.zeros(2048), np.eye(2048)), ["fid"])
    with pytest.raises(UserError, match="by 'digits', the reference's by 'inception'"):
        evaluate_generation(digits, Statistics(np.zeros(64), np.eye(64), None, "inception"))
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        evaluate_generation(subset(digits, torch.arange(1)), digits, ["fid"])
    with pytest.raises(UserError, match="at least 4 images, got 3"):
        evaluate_generation(subset(digits, torch.arange(3)), digits, ["precision_recall"])
    with pytest.raises(UserError, match="at least 10 images, got 9"):
        evaluate_generation(subset(digits, torch.arange(9)), digits, ["inception_score"])
    with pytest.raises(ValueError, match="2 images and 3 labels"):
        ImageSet(digits.images[:2], DIGITS, torch.zeros(3))


def test_a_metric_of_images_and_labels_is_a_function_and_one_line(monkeypatch):
    def brightness(generated: ImageSet, reference: ImageSet) -> dict[str, float]:
        zeros = generated.images[generated.labels == 0].float().mean()
        return {"brightness": float(zeros - next(iter(reference.batches())).float().mean())}

    monkeypatch.setitem(METRICS, "brightness", MetricSpec(brightness, reference_images=True, labels=True))
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    images[:2] = 9
    black = ImageSet(images[2:], DIGITS)
    assert evaluate_generation(ImageSet(images, DIGITS, labels), black, ["brightness"]) == {"brightness": 9.0}


def test_halves_of_the_digits_are_near_each_other_and_far_from_noise(digits):
    noise = torch.randint(0, 256, (500, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    far = evaluate_generation(ImageSet(noise, DIGITS), digits, ["fid"])["fid"]
    halves = [half_half_fid(digits, seed) for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]
    assert all(0 < value < far / 20 for value in halves)


def test_halves_lie_above_what_as_many_fresh_samples_reach_against_all():
    draw = torch.Generator().manual_seed(0)
    real, fresh = (set_of(torch.randn(400, 8, generator=draw)) for _ in range(2))
    halves = [half_half_fid(real, seed) for seed in range(5)]
    assert min(halves) > evaluate_generation(fresh, real, ["fid"])["fid"]


def softmax_score(logits: np.ndarray) -> float:
    """exp of the mean KL divergence from the mean, written out."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def scores(logits: torch.Tensor, **options) -> dict[str, float]:
    images = set_of(torch.zeros(len(logits), 2), logits)
    return evaluate_generation(images, images, ["inception_score"], {"inception_score": options})


def test_the_inception_score_has_the_splits_that_are_asked_for():
    logits = 3 * torch.randn(1230, 10, generator=torch.Generator().manual_seed(0))
    assert scores(logits, split_size=5000)["inception_score"] == pytest.approx(softmax_score(logits.numpy()), rel=1e-6)
    shuffled = logits.numpy().astype(np.float64)[np.random.RandomState(2020).permutation(1230)]
    parts = [softmax_score(shuffled[first : first + 500]) for first in (0, 500, 1000)]  # the last of 230, as ADM has it
    told = scores(logits, split_size=500)
    assert told["inception_score"] == pytest.approx(np.mean(parts), rel=1e-6)
    assert told["inception_score_std"] == pytest.approx(np.std(parts), rel=1e-6)
    assert scores(logits)["inception_score"] < told["inception_score"]  # smaller splits score less


def test_ten_splits_are_torch_fidelitys_and_a_file_in_the_order_of_its_classes_scores_as_any_other():
    logits = torch.nn.functional.one_hot(torch.arange(10).repeat_interleave(200), 10) * 9.0
    wanted = torch_fidelity.metric_isc.isc_features_to_metric(logits, splits=10)
    told = scores(logits)
    assert told["inception_score"] == pytest.approx(wanted["inception_score_mean"], rel=1e-9)
    assert told["inception_score_std"] == pytest.approx(wanted["inception_score_std"], rel=1e-9)
    assert scores(logits, split_size=200)["inception_score"] == pytest.approx(told["inception_score"], rel=1e-9)


@pytest.mark.parametrize(
    "count, size, told",
    [
        (50000, 0, {"splits": 10, "images per split": [5000]}),
        (50000, 5000, {"splits": 10, "images per split": [5000]}),
        (1797, 0, {"splits": 10, "images per split": [179, 180]}),
        (1797, 5000, {"splits": 1, "images per split": [1797]}),
        (12000, 5000, {"splits": 3, "images per split": [2000, 5000]}),
    ],
)
def test_the_protocol_says_how_large_the_splits_are(count, size, told):
    assert split_protocol(count, size) == told | {"order": "shuffled"}


def test_of_fewer_images_than_dimensions_every_frechet_distance_says_so(capsys):
    def moments(count):
        return Statistics(np.zeros(8), np.eye(8), count=count)

    note_few("sFID", moments(9), moments(None))
    assert capsys.readouterr().err == ""
    note_few("sFID", moments(9), moments(8))
    assert "note: sFID is of 8 images on features of 8 dimensions" in capsys.readouterr().err
