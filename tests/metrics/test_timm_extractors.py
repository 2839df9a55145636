"""Any timm model as an extractor: small ones with random weights."""

import sys

import numpy as np
import pytest
import scipy.linalg
import timm
import torch
import torch.nn.functional as F

from flowprior.errors import UserError
from flowprior.metrics import (
    Extractor,
    ImageSet,
    Statistics,
    evaluate_generation,
    frechet_distance,
    missing_weights,
    timm_extractors,
)
from flowprior.metrics.extractor_options import ExtractorOptions, split_weights
from flowprior.metrics.timm_extractors import _check_patches
from flowprior.pretrained.timm_encoder import patch_side
from flowprior.run.config import build_config

IMAGES = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A function from a model's name and a seed to a file of its random weights, with a classifier and DDP's prefix, as people keep them."""
    folder = tmp_path_factory.mktemp("weights")

    def file(name: str, seed: int = 0):
        path = folder / f"{name}_{seed}.pth"
        if not path.is_file():
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                tensors = timm.create_model(name).state_dict()
            torch.save({"model": {f"module.{key}": value for key, value in tensors.items()}, "epoch": 3}, path)
        return path

    return file


def plain_features(name: str, file, images: torch.Tensor, size: int) -> torch.Tensor:
    model = timm.create_model(name, **({"img_size": size} if name == "test_vit" else {})).eval()
    tensors = torch.load(file, weights_only=True)["model"]
    tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    if name == "test_vit":
        tensors["pos_embed"] = model.state_dict()["pos_embed"] if size != 160 else tensors["pos_embed"]
    model.load_state_dict(tensors)
    model.reset_classifier(0)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    pixels = F.interpolate(images / 255, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        return model((pixels - mean) / std)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 160), ("test_resnet", 64), ("test_efficientnet", 160)])
def test_features_are_what_timms_network_pools_at_the_size_and_normalisation_of_its_weights(weights, name, size):
    named = f"timm:{name}" + ("@64" if size == 64 else "")
    state = torch.random.get_rng_state()
    extractor = Extractor(named, weights_path=weights(name))
    found = extractor(IMAGES[:3])
    assert torch.equal(torch.random.get_rng_state(), state)  # timm's own draw of weights is nobody's business
    torch.testing.assert_close(found.fid, plain_features(name, weights(name), IMAGES[:3], size), rtol=1e-4, atol=1e-5)
    assert found.prc is found.fid and found.extractor == named
    told = extractor.protocol()
    config = timm.create_model(name).pretrained_cfg
    assert told["input"].startswith(f"{size} x {size}") and told["normalisation"]["mean"] == list(config["mean"])
    assert (told["name"], told["features"], told["weights"]) == (named, "pooled", extractor.fingerprint)


def test_a_size_whose_last_rows_the_model_would_not_see_is_refused_and_the_nearest_is_named(weights, capfd):
    asked = Extractor("timm:test_vit@40", weights_path=weights("test_vit"))
    with pytest.raises(
        UserError, match="not the last 8 of 40: write timm:test_vit@48, or evaluate.timm.size=48"
    ) as caught:
        _ = asked.module
    assert "\n" not in str(caught.value)
    assert Extractor("timm:test_vit@48", weights_path=weights("test_vit"))(IMAGES[:1]).fid.shape == (1, 64)
    assert "does not see" not in capfd.readouterr().err
    _check_patches("vit_so400m_patch14_siglip_384", 384, 14)  # trained at a size that its patches do not divide
    assert "does not see the last 6 rows and columns of 384 pixels" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "side"), [("test_vit", 16), ("vit_small_patch14_dinov2", 14), ("test_resnet", None), ("pvt_v2_b0", None)]
)
def test_the_side_of_patches_is_known_where_they_do_not_overlap(name, side):
    with torch.device("meta"):
        assert patch_side(timm.create_model(name)) == side


def slow_distance(first: np.ndarray, second: np.ndarray) -> float:
    means, covariances = [x.mean(0) for x in (first, second)], [np.cov(x, rowvar=False) for x in (first, second)]
    half = scipy.linalg.sqrtm(covariances[0] + 1e-12 * np.eye(len(means[0]))).real
    root = np.sqrt(np.linalg.eigvalsh(half @ covariances[1] @ half).clip(0)).sum()  # of (S1 S2)^(1/2) the trace
    return float(np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1]) - 2 * root)


def slow_share_inside(points: np.ndarray, of: np.ndarray, neighbours: int = 3) -> float:
    radii = [np.sort(np.linalg.norm(of - centre, axis=1))[neighbours] for centre in of]
    inside = [any(np.linalg.norm(point - c) <= radius for c, radius in zip(of, radii)) for point in points]
    return sum(inside) / len(points)


def test_distance_precision_and_recall_are_those_of_the_definitions(weights):
    extractor = Extractor("timm:test_resnet@32", weights_path=weights("test_resnet"))
    draw = torch.Generator().manual_seed(1)
    sets = [torch.randint(0, top, (110, 3, 24, 24), dtype=torch.uint8, generator=draw) for top in (256, 250)]
    result = evaluate_generation(*(ImageSet(images, extractor) for images in sets), ["fid", "precision_recall"])
    first, second = (extractor(images).fid.double().numpy() for images in sets)
    assert result["fid"] == pytest.approx(slow_distance(first, second), rel=1e-4)
    assert result["precision"] == pytest.approx(slow_share_inside(first, second))
    assert result["recall"] == pytest.approx(slow_share_inside(second, first))


def test_a_rotation_of_the_features_changes_no_distance():
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(60, 8)), draw.normal(0.3, 2, size=(50, 8))
    rotation = np.linalg.qr(draw.normal(size=(8, 8)))[0]

    def moments(x):
        return Statistics(x.mean(0), np.cov(x, rowvar=False))

    plain = frechet_distance(moments(first), moments(second))
    assert plain == pytest.approx(slow_distance(first, second), rel=1e-6)
    assert frechet_distance(moments(first @ rotation), moments(second @ rotation)) == pytest.approx(plain, rel=1e-6)


def test_two_files_of_weights_of_one_model_are_two_extractors(weights):
    one, other = (Extractor("timm:test_resnet@32", weights_path=weights("test_resnet", seed)) for seed in (0, 1))
    images = ImageSet(IMAGES, one)
    assert not torch.equal(images.features(one).fid, images.features(other).fid)
    assert one.fingerprint != other.fingerprint
    torch.testing.assert_close(images.features(one).fid, one(IMAGES).fid)


def chosen(**options) -> ExtractorOptions:
    return build_config(ExtractorOptions, {"extractor": "timm", **options}, "evaluate")


def test_the_options_name_a_model_its_file_or_the_package_that_holds_it(weights, tmp_path, monkeypatch):
    file = weights("test_resnet")
    by_file = chosen(timm={"model": "test_resnet", "size": 32, "weights": str(file)})
    (tmp_path / "some_weights").mkdir()
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('its code does not run')")
    (tmp_path / "some_weights" / "net.pth").write_bytes(file.read_bytes())
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    by_package = chosen(timm={"model": "test_resnet", "size": 32, "package": "some_weights"})
    assert by_file.extractor_name == "timm:test_resnet@32" == by_package.open_extractor().name
    assert by_file.open_extractor().fingerprint == by_package.open_extractor().fingerprint
    name, path = split_weights("timm:test_resnet@32=package:some_weights")
    assert (name, path.read_bytes()) == ("timm:test_resnet@32", file.read_bytes())


def test_a_mistake_is_one_line(weights, tmp_path):
    file = weights("test_resnet")
    attempts = [
        (lambda: Extractor("timm:resnet5000").module, "timm knows no model 'resnet5000'"),
        (lambda: Extractor("timm:test_vit", weights_path=file).module, "are not those of 'test_vit'"),
        (lambda: Extractor("timm").module, "timm:<model>"),
        (lambda: Extractor("timm:test_resnet@0").module, "no feature extractor"),
        (lambda: chosen(weights=str(file)), "write timm.weights="),
        (
            lambda: split_weights(f"timm:test_resnet:{file}"),
            f"a weight file stands behind a =: timm:test_resnet={file}",
        ),
        (
            lambda: chosen(extractor=f"timm:test_resnet@32={file}"),
            rf"write extractor=timm timm.model=test_resnet timm.size=32 timm.weights={file}",
        ),
        (lambda: chosen(extractor="timm:test_vit=package:x"), "timm.model=test_vit timm.package=x"),
        (lambda: chosen(extractor="inception=i.pth"), "write extractor=inception weights=i.pth"),
        (lambda: chosen(timm={"weights": str(file), "package": "x"}).open_extractor(), "both name a file"),
        (lambda: chosen(timm={"weights": str(tmp_path / "none.pth")}).open_extractor(), "no weight file at"),
        (lambda: split_weights("timm:test_resnet=package:no_such_package"), "is not installed"),
    ]
    for attempt, words in attempts:
        with pytest.raises(UserError, match=words) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    told = missing_weights(Extractor("timm:test_vit", weights_path=file))
    assert "test_vit" in told and missing_weights(Extractor("timm:test_resnet@32", weights_path=file)) == ""


def test_the_default_network_is_called_so_where_its_weights_are_missing(monkeypatch):
    def hub_has_none(name, remedy):
        raise UserError(remedy)

    monkeypatch.setattr(timm_extractors, "hub_weights", hub_has_none)
    told = missing_weights(ExtractorOptions(extractor="timm").open_extractor())
    assert "this network is the default, and evaluate.timm.model=<any timm model> names another" in told
    assert "is the default" not in missing_weights(Extractor("timm:test_vit"))
