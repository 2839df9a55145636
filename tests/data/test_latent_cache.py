import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowprior.data.images import to_model
from flowprior.data.latent_cache import LatentCache
from flowprior.data.latent_scale import LatentNormaliser, check_statistics, measure_statistics, store_statistics
from flowprior.data.latent_writer import CacheConfig, write_latent_cache
from flowprior.data.order import SampleKey
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.files import file_sha256
from flowprior.run.run_folder import Stopwatch

TOKENS, CHANNELS = 3, 4
MIX = torch.randn(3 * 8 * 8, TOKENS * CHANNELS, generator=torch.Generator().manual_seed(0)) / 14


def encode(images: Tensor) -> Tensor:
    return (images.flatten(1) @ MIX).view(-1, TOKENS, CHANNELS)


class Pictures:
    """N random images, every one with a label of its own."""

    kind, num_classes, class_names = "numbers", 1000, ["a", "b"]

    def __init__(self, count: int) -> None:
        self.images = torch.randint(
            0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(count)
        )

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> str:
        return "pictures"

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        index = torch.tensor([key.index for key in keys])
        assert all(key.epoch == -1 for key in keys)
        return {"image": self.images[index], "label": index + 500, "index": index}


class InTurn(World):
    """One of several processes that run after each other: there is nobody to wait for."""

    def barrier(self) -> None:
        pass


def write(folder: Path, count: int, world: int = 1, encoder=encode, **options) -> LatentCache:
    config = CacheConfig(**({"dtype": "float32", "shard_images": 10, "batch": 4} | options))
    for rank in reversed(range(world)):
        write_latent_cache(folder, Pictures(count), encoder, config, {"encoder": "fixed"}, InTurn(rank, world))
    return LatentCache(folder)


def everything(cache: LatentCache, epoch: int = -1) -> dict[str, Tensor]:
    return cache.batch([SampleKey(i, epoch) for i in range(len(cache))])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 64, 117])
def test_every_image_is_cached_once_whatever_the_number_of_processes(tmp_path, count, world):
    cache = write(tmp_path, count, world)
    batch = everything(cache)
    expected = torch.stack([encode(to_model(image.unsqueeze(0)))[0] for image in Pictures(count).images])
    assert len(cache) == count and cache.shape == (TOKENS, CHANNELS)
    assert batch["label"].tolist() == list(range(500, 500 + count))
    torch.testing.assert_close(batch["latents"], expected, rtol=1e-5, atol=1e-6)
    assert sum(len(load_file(file)["labels"]) for file in tmp_path.glob("latents-*.safetensors")) == count


def test_batches_are_read_in_the_order_of_their_keys(tmp_path):
    cache = write(tmp_path, 25)
    whole = everything(cache)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    batch = cache.batch([SampleKey(int(i), 0) for i in order])
    assert torch.equal(batch["latents"], whole["latents"][order]) and torch.equal(batch["label"], whole["label"][order])


@pytest.mark.parametrize("dtype, tolerance", [("float16", 1e-3), ("bfloat16", 8e-3), ("float32", 1e-6)])
def test_latents_are_stored_in_the_dtype_that_is_asked_for(tmp_path, dtype, tolerance):
    latents = everything(write(tmp_path, 12, dtype=dtype))["latents"]
    assert latents.dtype == torch.float32
    assert load_file(tmp_path / "latents-00000.safetensors")["latents"].dtype == getattr(torch, dtype)
    torch.testing.assert_close(latents, encode(to_model(Pictures(12).images)), rtol=tolerance, atol=tolerance)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("encoded_batches", [0, 1, 3, 4, 8])
def test_a_resumed_cache_equals_an_uninterrupted_one_and_encodes_no_shard_twice(tmp_path, encoded_batches):
    whole = write(tmp_path / "whole", 35)
    calls = []

    def dies(images: Tensor) -> Tensor:
        if len(calls) == encoded_batches:
            raise Killed
        calls.append(len(images))
        return encode(images)

    folder = tmp_path / "resumed"
    with pytest.raises(Killed):
        write(folder, 35, encoder=dies)
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("latents-*")}
    assert len(kept) == encoded_batches // 3 and not (folder / "manifest.json").exists()
    again = []
    write(folder, 35, encoder=lambda images: again.append(len(images)) or encode(images))
    assert sum(again) == 35 - 10 * len(kept)
    assert all(file.stat().st_mtime_ns == time for file, time in kept.items())
    assert {f.name: file_sha256(f) for f in folder.iterdir()} == {
        f.name: file_sha256(f) for f in whole.folder.iterdir()
    }


def test_the_seconds_of_a_resumed_cache_add_up_and_those_of_other_latents_do_not_count(tmp_path):
    def seconds(**options) -> float:
        watch = Stopwatch(tmp_path)
        config = CacheConfig(shard_images=8, batch=4, **options)
        write_latent_cache(tmp_path, Pictures(20), encode, config, {"encoder": "fixed"}, World(), stopwatch=watch)
        assert float((tmp_path / "seconds").read_text()) == pytest.approx(watch.seconds(), abs=100)
        return watch.seconds()

    assert seconds() < 400
    for missing in (0, 1):  # another one is kept in either case
        (tmp_path / "seconds").write_text("500")
        (tmp_path / f"latents-0000{missing}.safetensors").unlink()
        assert 500 < seconds() < 900
    assert seconds(flips=True) < 400


def test_shards_of_another_encoder_or_dtype_are_not_kept(tmp_path):
    write(tmp_path, 20, dtype="float16")
    (tmp_path / "manifest.json").unlink()
    assert torch.equal(everything(write(tmp_path, 20))["latents"], everything(write(tmp_path / "fresh", 20))["latents"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write(folder, 25)
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    for file in finished.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard=st.integers(0, 2), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_and_the_file_named(copy, shard, place, bit):
    file = copy / f"latents-{shard:05d}.safetensors"
    whole = file.read_bytes()
    data = bytearray(whole)
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    with pytest.raises(UserError, match=file.name):
        LatentCache(copy)
    file.write_bytes(whole)
    LatentCache(copy)


@pytest.mark.parametrize("length", [0, 4, 50, -1])
@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_shard_is_refused_and_the_file_named(copy, length, verify):
    file = copy / "latents-00001.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match=file.name):
        LatentCache(copy, verify=verify)


def test_a_missing_shard_and_a_missing_cache_are_named(copy):
    (copy / "latents-00002.safetensors").unlink()
    with pytest.raises(UserError, match="latents-00002"):
        LatentCache(copy)
    with pytest.raises(UserError, match="run `python -m generator cache_latents` first.*nowhere"):
        LatentCache(copy / "nowhere", made_by="python -m generator cache_latents")


def rewrite(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


REQUIRED = ["format", "count", "views", "tokens", "channels", "num_classes", "shards"]


WRONG = [None, "words", -1, [], {}, [1], [{}], [{"file": 3, "rows": 1, "sha256": ""}], "gone"]


@pytest.mark.parametrize("name, value", [(name, value) for name in REQUIRED for value in WRONG])
def test_a_manifest_with_a_missing_or_wrong_entry_is_refused(copy, name, value):
    rewrite(copy, lambda manifest: manifest.pop(name) if value == "gone" else manifest.update({name: value}))
    with pytest.raises(UserError, match=str(copy)):
        LatentCache(copy)


@pytest.mark.parametrize("text", ["", "[]", "{", "\0\1", "3"])
def test_a_manifest_that_is_no_json_object_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json"):
        LatentCache(copy)


@pytest.mark.parametrize(
    "tensors",
    [
        {"latents": torch.zeros(10, 1, TOKENS, CHANNELS)},
        {"labels": torch.zeros(10)},
        {},
        {"latents": torch.zeros(10, 1, TOKENS, 9), "labels": torch.zeros(10)},
        {"latents": torch.zeros(10, 1, TOKENS, CHANNELS), "labels": torch.zeros(3)},
    ],
)
def test_a_shard_of_other_contents_is_refused_though_its_checksum_fits(copy, tensors):
    file = copy / "latents-00000.safetensors"
    save_file(tensors, file)
    rewrite(copy, lambda manifest: manifest["shards"][0].update(sha256=file_sha256(file)))
    with pytest.raises(UserError, match=str(copy)):
        LatentCache(copy)


def test_both_flips_are_cached_and_training_draws_one_of_them(tmp_path):
    cache = write(tmp_path, 40, flips=True)
    images = to_model(Pictures(40).images)
    views = torch.stack([encode(images), encode(images.flip(-1))], dim=1)
    torch.testing.assert_close(everything(cache)["latents"], views[:, 0], rtol=1e-5, atol=1e-6)
    drawn = [
        torch.isclose(everything(cache, epoch)["latents"].unsqueeze(1), views, rtol=1e-4, atol=1e-5).flatten(2).all(2)
        for epoch in range(6)
    ]
    assert all((one.sum(1) == 1).all() for one in drawn)
    mirrored = torch.stack([one[:, 1] for one in drawn]).float()
    assert 0.35 < mirrored.mean() < 0.65 and (mirrored.std(0) > 0).float().mean() > 0.8
    assert torch.equal(everything(LatentCache(tmp_path, seed=0), 3)["latents"], everything(cache, 3)["latents"])
    assert not torch.equal(everything(LatentCache(tmp_path, seed=1), 3)["latents"], everything(cache, 3)["latents"])


def test_statistics_are_numpys(tmp_path):
    cache = write(tmp_path, 33)
    statistics = measure_statistics(cache, 10_000)
    tokens = everything(cache)["latents"].double().numpy().reshape(-1, CHANNELS)
    assert statistics["images"] == 33
    expected = {
        "min": tokens.min(),
        "max": tokens.max(),
        "mean": tokens.mean(),
        "std": tokens.std(ddof=1),
        "scale": 1 / tokens.std(ddof=1),
    }
    assert {name: statistics[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(statistics["channel_mean"], tokens.mean(0), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(statistics["channel_std"], tokens.std(0, ddof=1), rtol=1e-10)


def test_statistics_are_those_of_the_views_that_training_draws(tmp_path):
    cache = write(tmp_path, 40, flips=True)
    seen, first_view = everything(cache, 0)["latents"].double(), everything(cache)["latents"].double()
    statistics = measure_statistics(cache, 40)
    assert statistics["std"] == pytest.approx(seen.std().item(), rel=1e-6)
    assert statistics["std"] != pytest.approx(first_view.std().item(), rel=1e-3)


def test_statistics_of_a_subset_are_those_of_that_many_different_images(tmp_path):
    cache = write(tmp_path, 33)
    tokens = everything(cache)["latents"].double()
    seen = []
    cache.batch = lambda keys, read=cache.batch: seen.extend(key.index for key in keys) or read(keys)
    statistics = measure_statistics(cache, 20)
    assert len(seen) == len(set(seen)) == statistics["images"] == 20
    assert statistics["mean"] == pytest.approx(tokens[seen].mean().item(), rel=1e-12)


def test_statistics_are_stored_beside_what_the_manifest_held(copy):
    before = json.loads((copy / "manifest.json").read_text())
    statistics = measure_statistics(LatentCache(copy), 10)
    store_statistics(copy, statistics)
    assert LatentCache(copy).manifest == before | {"statistics": statistics}


def test_statistics_without_those_that_the_scale_is_made_of_are_refused_in_one_line(copy):
    statistics = measure_statistics(LatentCache(copy), 10)
    old = {name: value for name, value in statistics.items() if not name.startswith("token")}
    store_statistics(copy, old)
    assert check_statistics(LatentCache(copy), per="channel") == old
    with pytest.raises(UserError, match="has no scale per token: run `estimate_scale`"):
        check_statistics(LatentCache(copy), per="token")
    for damaged in ({"token_std": [[1.0]]}, {"token_std": [[-1.0] * CHANNELS] * TOKENS}, {"token_mean": "many"}):
        store_statistics(copy, statistics | damaged)
        assert check_statistics(LatentCache(copy)) == statistics | damaged
        with pytest.raises(UserError, match="are damaged"):
            check_statistics(LatentCache(copy), per="token")


def constant(value: float):
    return lambda images: torch.full((len(images), TOKENS, CHANNELS), value)


def test_constant_latents_have_no_scale(tmp_path):
    with pytest.raises(UserError, match="constant or not finite"):
        measure_statistics(write(tmp_path, 6, encoder=constant(0.0)), 10)


@pytest.mark.parametrize("value, dtype", [(float("nan"), "float32"), (float("-inf"), "float32"), (1e5, "float16")])
def test_latents_that_are_not_finite_in_the_caches_dtype_are_not_written(tmp_path, value, dtype):
    with pytest.raises(UserError, match=f"image 0 are not finite in {dtype}"):
        write(tmp_path, 6, encoder=constant(value), dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_normalised_latents_have_unit_deviation(tmp_path):
    cache = write(tmp_path, 50)
    statistics = measure_statistics(cache, 50)
    latents = everything(cache)["latents"]
    for_all = LatentNormaliser.from_statistics(statistics, "all")(latents).flatten(0, 1)
    assert for_all.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(for_all / for_all.norm(), latents.flatten(0, 1) / latents.norm())
    per_channel = LatentNormaliser.from_statistics(statistics, "channel")(latents).flatten(0, 1)
    torch.testing.assert_close(per_channel.std(0), torch.ones(CHANNELS), rtol=1e-4, atol=0)
    torch.testing.assert_close(per_channel.mean(0), torch.zeros(CHANNELS), rtol=0, atol=1e-5)
    per_token = LatentNormaliser.from_statistics(statistics, "token")(latents)
    torch.testing.assert_close(per_token.std(0), torch.ones(TOKENS, CHANNELS), rtol=1e-4, atol=0)
    torch.testing.assert_close(per_token.mean(0), torch.zeros(TOKENS, CHANNELS), rtol=0, atol=1e-5)


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.one_of(st.tuples(st.integers(1, 6)), st.tuples(st.integers(1, 4), st.integers(1, 6))),
    st.floats(-3, 3),
    st.floats(-4, 4),
)
def test_undoing_the_normaliser_gives_the_latents_back(seed, shape, log_scale, mean):
    generator = torch.Generator().manual_seed(seed)
    normaliser = LatentNormaliser(*shape)
    normaliser.mean.copy_(mean + torch.randn(shape, generator=generator))
    normaliser.scale.copy_(10**log_scale * (0.1 + torch.rand(shape, generator=generator)))
    latents = torch.randn(2, shape[0] if len(shape) == 2 else 3, shape[-1], generator=generator)
    torch.testing.assert_close(normaliser.undo(normaliser(latents)), latents, rtol=1e-4, atol=1e-5)
    assert not list(normaliser.parameters()) and set(normaliser.state_dict()) == {"mean", "scale"}


def test_ten_crops_are_the_corners_and_the_centre_each_mirrored_as_well(tmp_path):
    config = CacheConfig(ten_crop=True, enlarge=1.5, dtype="float32")
    assert config.image_size(8) == 12
    images = torch.arange(2 * 3 * 12 * 12).view(2, 3, 12, 12).float()
    views = config.views(images, 8)
    expected = [images[..., top : top + 8, left : left + 8] for top, left in [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]]
    assert len(views) == 10
    for view, crop, mirrored in zip(views, expected, views[5:]):
        assert torch.equal(view, crop) and torch.equal(mirrored, crop.flip(-1))


def test_every_crop_is_cached_and_training_draws_one_of_the_ten(tmp_path):
    config = CacheConfig(ten_crop=True, enlarge=1.5, dtype="float32")
    mean_of_crop = lambda images: images.mean((1, 2, 3)).view(-1, 1, 1)  # noqa: E731
    write_latent_cache(tmp_path, Pictures(30), mean_of_crop, config, {}, World(), size=6)
    cache = LatentCache(tmp_path)
    crops = torch.stack([mean_of_crop(v) for v in config.views(to_model(Pictures(30).images), 6)], 1)
    torch.testing.assert_close(everything(cache)["latents"], crops[:, 0])
    drawn = torch.stack([everything(cache, epoch)["latents"] for epoch in range(5)])
    found = torch.isclose(drawn.unsqueeze(2), crops, rtol=1e-5, atol=1e-6).flatten(3).all(3)  # (5, N, 10)
    assert found.any(2).all() and len(found.nonzero()[:, 2].unique()) == 10


def moments(images: Tensor) -> Tensor:
    """Mean as :func:`encode`'s, and a standard deviation of 1/2 everywhere."""
    mean = encode(images)
    return torch.cat([mean, torch.full_like(mean, 2 * np.log(0.5))], dim=-1)


def test_from_cached_moments_training_draws_anew_in_every_epoch(tmp_path):
    cache = write(tmp_path, 40, encoder=moments, posterior="moments", flips=True)
    assert cache.shape == (TOKENS, CHANNELS) and cache.moments
    first, again, next_epoch = (everything(cache, epoch)["latents"] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.isclose(first, next_epoch).any()
    draws = torch.stack([everything(cache, epoch)["latents"] for epoch in range(200)])
    images = to_model(Pictures(40).images)
    means = (encode(images) + encode(images.flip(-1))) / 2
    torch.testing.assert_close(draws.mean(0), means, rtol=0, atol=0.35)
    shuffled = cache.batch([SampleKey(i, 0) for i in (7, 3)])["latents"]
    assert torch.equal(shuffled, first[[7, 3]])
    spread = measure_statistics(cache, 40)["std"] ** 2
    assert spread == pytest.approx(first.var().item(), rel=0.1)


def test_cached_draws_are_the_same_however_the_images_are_batched(tmp_path):
    one = write(tmp_path / "one", 25, encoder=moments, posterior="sample", batch=4)
    other = write(tmp_path / "other", 25, world=2, encoder=moments, posterior="sample", batch=7)
    torch.testing.assert_close(everything(one)["latents"], everything(other)["latents"], rtol=1e-5, atol=1e-6)
    noise = (everything(one)["latents"] - encode(to_model(Pictures(25).images))) * 2
    assert noise.mean().abs() < 0.2 and noise.std().item() == pytest.approx(1, abs=0.15)


def test_images_read_by_other_processes_make_the_same_cache(tmp_path):
    write(tmp_path / "own", 25)
    write(tmp_path / "others", 25, loader_workers=2)
    one, other = ({f.name: file_sha256(f) for f in (tmp_path / name).iterdir()} for name in ("own", "others"))
    assert one == other


@pytest.mark.parametrize("options", [{}, {"flips": True}, {"dtype": "bfloat16"}])
def test_latents_that_are_held_are_one_tensor_and_give_the_same_batches(options, tmp_path):
    cache, held = write(tmp_path, 53, **options), LatentCache(tmp_path)
    held.move_to(torch.device("cpu"))
    assert len(cache.latents) == 6 and len(held.latents) == 1 and held.bytes == cache.bytes
    keys = [SampleKey(i, epoch) for epoch in (-1, 0, 3) for i in (0, 9, 10, 52, 17, 9)]
    for name, value in cache.batch(keys).items():
        assert torch.equal(held.batch(keys)[name], value)


def test_latents_that_do_not_lie_on_a_gpu_stay_where_they_are(tmp_path):
    cache = write(tmp_path, 12)
    assert not cache.hold_on(torch.device("cpu")) and cache.device.type == "cpu"
    assert cache.bytes == 12 * TOKENS * CHANNELS * 4


def test_what_a_cache_is_made_of_names_later_options_only_where_they_are_used():
    assert CacheConfig().describe() == {"flips": False, "dtype": "float16"}
    assert CacheConfig(ten_crop=True, posterior="moments").describe() == {
        "flips": False,
        "dtype": "float16",
        "ten_crop": 1.1,
        "posterior": "moments",
    }


@pytest.mark.parametrize("values", [{"enlarge": 1.0}, {"loader_workers": -1}, {"flips": True, "ten_crop": True}])
def test_impossible_caches_are_refused(values):
    with pytest.raises(ValueError):
        CacheConfig(**values)


@pytest.mark.parametrize("name", ["../latents-00000.safetensors", "latents-00000.safetens" + "[" * 300, 7])
def test_a_manifest_that_names_files_which_are_no_shards_is_refused(name, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["file"] = name
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="manifest.json is damaged"):
        LatentCache(copy)
