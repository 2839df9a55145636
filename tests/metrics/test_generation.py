import numpy as np
import pytest
import torch
import torch_fidelity
from torch.utils.data import Dataset

from flowprior.data.digits import digit_images
from flowprior.errors import UserError
from flowprior.metrics import generation
from flowprior.metrics.extractors import Features, extract_features
from flowprior.metrics.generation import evaluate_generation, half_half_fid, statistics_of
from flowprior.metrics.statistics import Statistics, StreamingMoments


def features_of(points: torch.Tensor, logits: torch.Tensor | None = None) -> Features:
    return Features(points.float(), torch.zeros(len(points), 10) if logits is None else logits, "digits")


def with_moments(count: int, mean: torch.Tensor, deviations: torch.Tensor, rotation: torch.Tensor, seed: int) -> Features:
    """Points whose sample mean is ``mean`` and whose sample covariance is ``R diag(deviations^2) R^T``, both exactly."""
    x = torch.randn(count, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = torch.linalg.qr(x - x.mean(0)).Q * (count - 1) ** 0.5
    return features_of(x * deviations @ rotation.T + mean)


@pytest.fixture(scope="module")
def digits() -> Features:
    return extract_features(digit_images(32)[0].split(256), "digits")


@pytest.mark.parametrize("reference_as", ["features", "statistics"])
def test_fid_of_gaussians_with_common_axes_is_the_closed_form(reference_as):
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))).Q
    means = torch.tensor([[0.0, 0, 0, 0, 0], [1.0, -2, 0, 0.5, 3]], dtype=torch.float64)
    deviations = torch.tensor([[1.0, 2, 0.5, 1, 3], [2.0, 1, 0.5, 4, 1]], dtype=torch.float64)
    first, second = (with_moments(400, means[i], deviations[i], rotation, seed=i) for i in (0, 1))
    reference = second if reference_as == "features" else statistics_of(second)
    expected = float((means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum())
    assert evaluate_generation(first, reference, ["fid"])["fid"] == pytest.approx(expected, rel=1e-5)


def test_fid_of_a_set_with_itself_is_zero(digits):
    assert abs(evaluate_generation(digits, digits, ["fid"])["fid"]) < 1e-6


def test_streamed_moments_give_the_fid_of_the_features(digits):
    order = torch.randperm(digits.count, generator=torch.Generator().manual_seed(0))
    generated, real = digits.subset(order[:600]), digits.subset(order[600:])
    moments = StreamingMoments(64)
    for batch in real.features.split(100):
        moments.update(batch)
    streamed = evaluate_generation(generated, moments.statistics("digits"), ["fid"])["fid"]
    assert streamed == pytest.approx(evaluate_generation(generated, real, ["fid"])["fid"], rel=1e-6)


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
    ours = evaluate_generation(*(extract_features(images.split(64), "digits") for images in (fake, real)))
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
    certain = features_of(torch.zeros(20000, 2), torch.nn.functional.one_hot(labels, 10) * 50.0)
    assert evaluate_generation(certain, certain, ["inception_score"])["inception_score"] == pytest.approx(10, rel=0.01)
    unsure = features_of(torch.zeros(100, 2), torch.ones(100, 10))
    assert evaluate_generation(unsure, unsure, ["inception_score"])["inception_score"] == pytest.approx(1)


def clusters(*centres: float) -> Features:
    points = [torch.randn(50, 8, generator=torch.Generator().manual_seed(round(abs(c)))) + c for c in centres]
    return features_of(torch.cat(points))


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


def test_precision_and_recall_are_left_out_without_features_and_refused_when_named(digits):
    statistics = statistics_of(digits)
    assert set(evaluate_generation(digits, statistics)) == {"fid", "inception_score", "inception_score_std"}
    with pytest.raises(UserError, match="precision_recall"):
        evaluate_generation(digits, statistics, ["precision_recall"])


def test_mistakes_are_named(digits):
    with pytest.raises(UserError, match="did you mean 'fid'"):
        evaluate_generation(digits, digits, ["fidd"])
    with pytest.raises(UserError, match="2048 dimensions and the digits features 64"):
        evaluate_generation(digits, Statistics(np.zeros(2048), np.eye(2048)), ["fid"])
    with pytest.raises(UserError, match="by 'digits', the reference's by 'inception'"):
        evaluate_generation(digits, Statistics(np.zeros(64), np.eye(64), None, "inception"))
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        evaluate_generation(digits.subset(torch.arange(1)), digits)


def test_a_metric_is_added_by_one_line(digits, monkeypatch):
    monkeypatch.setitem(generation.METRICS, "count", lambda generated, reference: {"count": float(generated.count)})
    assert evaluate_generation(digits, digits, ["count"]) == {"count": 1797.0}


def test_halves_of_the_digits_are_near_each_other_and_far_from_noise(digits):
    noise = torch.randint(0, 256, (500, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    far = evaluate_generation(extract_features([noise], "digits"), digits, ["fid"])["fid"]
    halves = [half_half_fid(digits, seed) for seed in (0, 0, 1)]
    assert halves[0] == halves[1] != halves[2]
    assert all(0 < value < far / 20 for value in halves)
