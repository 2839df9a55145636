import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flowprior.data.embedded import digit_images, split_indices
from flowprior.data.images import ImageConfig, to_model
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from tokenizer.prior.targets import TargetConfig, load_target
from tokenizer.prior.targets.base import TargetContext
from tokenizer.prior.targets.codebook import k_means

ENTRIES = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def load(folder, seed=0, data=None, others=None, **options):
    config = build_config(TargetConfig, {"source": "codebook", "codebook": options, **(others or {})})
    return load_target(config, TargetContext(seed, folder, World(), data or ImageConfig()))


def test_a_codebook_is_read_by_its_name_out_of_a_checkpoint_of_any_depth(tmp_path):
    save_file({"quantize.embedding.weight": ENTRIES, "rest": torch.ones(3)}, tmp_path / "vq.safetensors")
    torch.save({"model": {"quantize.embedding.weight": ENTRIES, "rest": torch.ones(3)}, "steps": 7}, tmp_path / "vq.pt")
    flat = load(tmp_path, path=str(tmp_path / "vq.safetensors"), key="quantize.embedding.weight")
    deep = load(tmp_path, path=str(tmp_path / "vq.pt"), key="model.quantize.embedding.weight")
    assert torch.equal(flat.features, ENTRIES) and torch.equal(deep.features, ENTRIES)
    with pytest.raises(UserError, match="model.quantize.embedding.weight") as refusal:
        load(tmp_path, path=str(tmp_path / "vq.pt"), key="quantize.weight")
    assert "target.codebook.key=" in str(refusal.value) and "target.file" not in str(refusal.value)


def test_entries_can_be_taken_at_unit_length(tmp_path):
    np.save(tmp_path / "vq.npy", ENTRIES.numpy())
    target = load(tmp_path, path=str(tmp_path / "vq.npy"), unit_length=True)
    torch.testing.assert_close(target.features, ENTRIES / ENTRIES.norm(dim=1, keepdim=True))


def test_k_means_finds_two_clusters_that_lie_apart():
    noise = 0.01 * torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    points = noise + torch.tensor([-5.0, 5.0]).repeat(50).unsqueeze(1)
    centres = k_means(points, 2, 10, seed=0)
    torch.testing.assert_close(centres.sort(dim=0).values, torch.tensor([[-5.0] * 4, [5.0] * 4]), atol=0.01, rtol=0)


def test_every_centre_is_the_mean_of_the_points_that_are_nearest_to_it():
    points = torch.randn(600, 3, generator=torch.Generator().manual_seed(1))
    centres = k_means(points, 7, 200, seed=0)
    nearest = torch.cdist(points, centres).argmin(1)
    means = torch.stack([points[nearest == i].mean(0) for i in range(7)])
    torch.testing.assert_close(centres, means, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("points, clusters", [(torch.zeros(3, 2), 4), (torch.full((5, 2), float("nan")), 2)])
def test_points_that_cannot_be_clustered_are_refused(points, clusters):
    with pytest.raises(UserError, match="cluster"):
        k_means(points, clusters, 5, seed=0)


def test_clusters_of_a_file_are_a_function_of_the_seed_and_made_once(tmp_path):
    np.save(tmp_path / "points.npy", torch.randn(400, 5, generator=torch.Generator().manual_seed(0)).numpy())
    options = {"path": str(tmp_path / "points.npy"), "clusters": 9}
    first, again, other = (load(tmp_path / name, seed, **options) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert first.features.shape == (9, 5) and torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    stamp = (tmp_path / "a" / "target.safetensors").stat().st_mtime_ns
    load(tmp_path / "a", **options)
    assert (tmp_path / "a" / "target.safetensors").stat().st_mtime_ns == stamp
    np.save(tmp_path / "points.npy", torch.randn(400, 5, generator=torch.Generator().manual_seed(1)).numpy())
    assert not torch.equal(load(tmp_path / "a", **options).features, first.features)


def test_a_codebook_of_patches_has_the_means_of_patches_as_pixels(tmp_path):
    data = ImageConfig(size=16, subset="val")
    target = load(tmp_path, data=data, of="patches", patch_size=8, clusters=8, iterations=60)
    images = to_model(digit_images(16)[0][split_indices(1797, "val")])  # (N, 3, 16, 16)
    patches = torch.cat([images[:, :, y : y + 8, x : x + 8].flatten(1) for y in (0, 8) for x in (0, 8)])
    nearest = torch.cdist(patches, target.features).argmin(1)
    means = torch.stack([patches[nearest == i].mean(0) for i in range(8)])
    assert target.features.shape == (8, 192)
    torch.testing.assert_close(target.features, means, rtol=0, atol=1e-3)
    assert torch.equal(target.features[:, :64], target.features[:, 64:128])  # grey: channel after channel


def test_a_codebook_of_another_source_keeps_that_sources_features_in_their_own_folder(tmp_path):
    others = {"digits_semantic": {"steps": 2, "width": 8, "image_size": 16}}
    target = load(tmp_path, of="digits_semantic", clusters=10, iterations=3, others=others)
    assert target.features.shape == (10, 8)
    kept = tmp_path / "target_digits_semantic" / "target.safetensors"
    stamp = kept.stat().st_mtime_ns
    load(tmp_path, of="digits_semantic", clusters=11, iterations=3, others=others)
    assert kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "target.codebook.path="),
        ({"path": "nowhere.pt"}, "nowhere.pt"),
        ({"of": "patches"}, "clusters=1024"),
        ({"of": "codebook", "clusters": 3}, "not codebook itself"),
        ({"of": "bogus", "clusters": 3}, "no source of target features called 'bogus'"),
        ({"of": "patches", "clusters": 3, "patch_size": 7}, "patches of 7 pixels"),
        ({"clusters": -1}, "negative"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, **options)
