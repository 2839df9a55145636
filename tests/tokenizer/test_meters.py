import numpy as np
import pytest
import torch

from flowprior.data.embedded import digit_images
from flowprior.data.images import ImageConfig, open_images, to_model
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.metrics import Extractor, Statistics, StreamingMoments, frechet_distance, psnr, ssim
from flowprior.run.reporting import RunLog
from flowprior.run.run_folder import RunFolder
from full_recipe import random_vgg
from networks import random_prior
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.losses.perceptual import PerceptualLoss
from tokenizer.metrics import MeterContext, build_meters
from tokenizer.monitor import Monitor, MonitorConfig, latent_metrics
from tokenizer.vit import ViTConfig

IMAGES = digit_images(32)[0][:40]
NOISY = (IMAGES.int() + torch.randint(-60, 60, IMAGES.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
NOISY = NOISY.to(torch.uint8)


def context(**options) -> MeterContext:
    return MeterContext(torch.device("cpu"), len(IMAGES), 32, **options)


def moments(images, **about) -> Statistics:
    streaming = StreamingMoments()
    streaming.update(Extractor("digits")(images).fid)
    return streaming.statistics("digits", **about)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    torch.manual_seed(0)
    return random_vgg(tmp_path_factory.mktemp("vgg") / "vgg.safetensors")


def test_meters_over_batches_give_what_the_whole_set_gives(vgg):
    meters = build_meters(["fidelity", "lpips", "rfid"], context(extractor="digits", perceptual_weights=str(vgg)))
    for original, other in zip(IMAGES.split(16), NOISY.split(16)):
        for meter in meters:
            meter.update(original, other)
    metrics = {name: value for meter in meters for name, value in meter.compute().items()}
    assert metrics["psnr"] == pytest.approx(psnr(IMAGES, NOISY)) and metrics["ssim"] == pytest.approx(
        ssim(IMAGES, NOISY)
    )
    assert metrics["rfid"] == pytest.approx(frechet_distance(moments(NOISY), moments(IMAGES)), rel=1e-6)
    whole = PerceptualLoss().load(str(vgg))(to_model(NOISY[:8]), to_model(IMAGES[:8]))
    [lpips] = build_meters(["lpips"], context(perceptual_weights=str(vgg)))
    lpips.update(IMAGES[:8], NOISY[:8])
    assert lpips.compute()["lpips"] == pytest.approx(whole.item(), rel=1e-5) and whole > 0
    assert meters[1].protocol()["lpips"]["weights"] and meters[2].protocol()["extractor"]["name"] == "digits"
    assert meters[2].protocol()["reference"] == {"images": "the originals", "size": "32 x 32", "crop": "centre"}
    with pytest.raises(ValueError, match="pairs of one size"):
        meters[2].update(IMAGES, NOISY[:, :, :16, :16])


@pytest.mark.parametrize(
    "about, what",
    [
        ({"crop": "centre 64"}, "crop"),
        ({}, "crop"),
        ({"crop": "centre 32", "count": 39}, "number"),
        ({"extractor": "inception"}, "extractor"),
    ],
)
def test_a_reference_of_another_crop_count_or_extractor_is_refused(tmp_path, about, what):
    from dataclasses import replace

    replace(moments(IMAGES), **about).save(tmp_path / "reference.npz")
    with pytest.raises(UserError, match=f"another {what}"):
        build_meters(["rfid"], context(extractor="digits", reference=str(tmp_path / "reference.npz")))


def test_a_reference_of_the_same_images_gives_the_same_rfid(tmp_path):
    moments(IMAGES, crop="centre 32").save(tmp_path / "reference.npz")
    assert Statistics.load(tmp_path / "reference.npz").crop == "centre 32"
    metrics = []
    for reference in ("", str(tmp_path / "reference.npz")):
        [meter] = build_meters(["rfid"], context(extractor="digits", reference=reference))
        meter.update(IMAGES, NOISY)
        metrics.append(meter.compute()["rfid"])
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6)


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: b"", None])
def test_vgg_weights_that_are_damaged_or_not_there_are_refused_and_named(vgg, tmp_path, damage):
    file = tmp_path / "vgg.safetensors"
    if damage:
        file.write_bytes(damage(vgg.read_bytes()))
    with pytest.raises(UserError, match="vgg.safetensors") as caught:
        PerceptualLoss().load(str(file))
    assert "\n" not in str(caught.value) and "download.pytorch.org" in str(caught.value)


@pytest.mark.parametrize("zip_file", [True, False])
def test_vgg_weights_are_taken_from_torchs_own_file_formats_by_name(vgg, tmp_path, zip_file):
    from safetensors.torch import load_file

    weights = load_file(vgg)
    extra = {"classifier.0.weight": torch.zeros(2)}
    torch.save(weights | extra, tmp_path / "vgg.pth", _use_new_zipfile_serialization=zip_file)
    network = PerceptualLoss().load(str(tmp_path / "vgg.pth")).net.net
    assert torch.equal(network.slice1[0].weight, weights["features.0.weight"])
    assert torch.equal(network.slice5._modules["28"].weight, weights["features.28.weight"])


def test_the_effective_rank_counts_directions_of_equal_spread(generator):
    flat = torch.zeros(400, 2, 6)
    flat[..., :3] = torch.randn(400, 2, 3, generator=generator)
    assert latent_metrics(flat)["latent_effective_rank"] == pytest.approx(3, abs=0.05)
    assert latent_metrics(flat[..., :1])["latent_effective_rank"] == pytest.approx(1)
    assert latent_metrics(flat + 5)["latent_mean"] == pytest.approx(flat.mean().item() + 5, abs=1e-5)


def test_the_correlation_of_alignment_and_distance_is_over_the_whole_run_and_survives_a_resume(tmp_path):
    vit = ViTConfig(width=12, depth=1, heads=3)
    autoencoder = Autoencoder(AutoencoderConfig(32, 8, 4, 3, encoder=vit, decoder=vit)).eval()
    from flowprior.run.files import write_tensors

    write_tensors(tmp_path / "target.safetensors", {"samples": torch.randn(200, 3)})
    folder, log = RunFolder(tmp_path, "ae"), RunLog(tmp_path / "ae", tensorboard=False)
    rows = []
    for step in range(1, 6):
        monitor = Monitor(  # a new one every time, as after a resume
            MonitorConfig(images=8, metrics=("fidelity", "lpips")),
            folder,
            open_images(ImageConfig()),
            random_prior(3),
            tmp_path / "target.safetensors",
            context(perceptual_weights="nowhere.pth"),
            World(),
        )
        with torch.no_grad():
            autoencoder.encoder.to_latent.bias.add_(0.3)
        metrics = monitor(autoencoder, step)
        log.write(step, metrics)
        rows.append([metrics["alignment"], metrics["knn_log_distance"]])
        assert "psnr" in metrics and "lpips" not in metrics
        if step < 3:
            assert "alignment_knn_correlation" not in metrics
        else:
            assert metrics["alignment_knn_correlation"] == pytest.approx(np.corrcoef(np.array(rows).T)[0, 1])


def test_the_alignment_loss_is_that_of_the_tokens_whose_distances_are_measured(tmp_path):
    """And of no more of them, whatever the number of images."""
    vit = ViTConfig(width=12, depth=1, heads=3)
    autoencoder = Autoencoder(AutoencoderConfig(32, 8, 4, 3, encoder=vit, decoder=vit)).eval()
    images, prior = open_images(ImageConfig()), random_prior(3)
    config = MonitorConfig(images=12, latents=16)
    monitor = Monitor(
        config, RunFolder(tmp_path, "ae"), images, prior, tmp_path / "none.safetensors", context(), World()
    )
    metrics = monitor(autoencoder, 1)
    with torch.no_grad():
        batch = torch.cat([images.batch(keys)["image"] for keys in monitor.keys])
        tokens = autoencoder.encode(to_model(batch)).flatten(0, 1)
    rows = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:16]
    generator = torch.Generator().manual_seed(0)
    expected = prior.alignment_loss(tokens[rows], group_size=8, generator=generator).item()
    assert metrics["alignment"] == pytest.approx(expected, rel=1e-6) and "knn_log_distance" not in metrics


def test_fidelity_is_that_of_float32_whatever_trainings_autocast():
    smooth = (160 + 30 * torch.linspace(0, 6, 32).sin().expand(4, 3, 32, 32)).round().to(torch.uint8)
    noisy = smooth + torch.randint(0, 4, smooth.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    [plain], [within] = build_meters(["fidelity"], context()), build_meters(["fidelity"], context())
    plain.update(smooth, noisy)
    with torch.autocast("cpu", torch.bfloat16):
        within.update(smooth, noisy)
    assert within.compute() == plain.compute() and plain.compute()["ssim"] > 0.5
