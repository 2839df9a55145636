"""The groups of measures that look at images, labels or a prior: reconstruction, semantics, alignment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowprior.data.embedded import EMBEDDED
from flowprior.data.images import to_model
from flowprior.errors import UserError
from flowprior.flow.prior import FlowPrior
from flowprior.metrics.digit_networks import judge_confidence
from flowprior.metrics.fid import few_images
from flowprior.metrics.latent_statistics import midpoints
from flowprior.metrics.registry import foreign_images
from flowprior.run.files import file_sha256, tensors_fingerprint
from latent_report.bootstrap import Estimate, bootstrap, mean
from latent_report.config import ReportConfig
from latent_report.left_out import in_own_words, named_in
from latent_report.measure import Measured, Results
from latent_report.measures import alignment, reconstruction, semantics

if TYPE_CHECKING:
    from flowprior.metrics.extractors import Extractor, Features

PICTURES = 10
WIDE_FEATURES = 256  # beyond, a Fréchet distance takes so long that it is resampled a few times alone
WIDE_RESAMPLES = 20
PRIOR_SAMPLES = 20_000
BATCH = 64
SURE = 0.9  # probability of a class (SimFlow, arXiv 2512.04084, Fig. 3)


def extractor_name(config: ReportConfig, image_kind: str | None) -> str:
    """The extractor of these images: the one that was named, or an embedded data set's own."""
    return config.extractor or (image_kind if image_kind in EMBEDDED else "inception")


def _open_extractor(config: ReportConfig, image_kind: str | None) -> Extractor:
    from flowprior.metrics.extractors import Extractor

    return Extractor(extractor_name(config, image_kind), weights_path=config.extractor_weights or None)


def networks(config: ReportConfig, image_kind: str) -> dict[str, str]:
    """Fingerprints of what images of this kind are looked at with, empty where that is not to be had: ``extractor``, ``lpips``, ``features``."""
    from tokenizer.losses.perceptual import vgg_place

    vgg = vgg_place(config.lpips_weights)
    made = {"lpips": file_sha256(vgg)[:16] if vgg.is_file() else ""}
    for name, fingerprint in (
        ("extractor", lambda: _open_extractor(config, image_kind).fingerprint),
        ("features", lambda: file_sha256(_features_file(config))[:16] if config.features else ""),
    ):
        try:
            made[name] = fingerprint()
        except (UserError, OSError):  # whoever measures with it says so
            made[name] = ""
    return made


def extracted(measured: Measured, results: Results, images: Tensor) -> Features:
    """What the extractor sees in uint8 images; its weights' fingerprint is kept.

    Raises:
        UserError: the extractor's weights cannot be had.
    """
    from flowprior.metrics.extractors import Features

    extractor = _open_extractor(measured.config, measured.latents.about.get("image_kind"))
    if "extractor" not in results.weights:
        results.weights["extractor"] = extractor.fingerprint
    return Features.concatenate([extractor(part) for part in images.split(BATCH)])


def confidence(measured: Measured, images: Tensor, seen: Features) -> Tensor:
    """The largest probability of a class in each image, ``(N,)``: by the judge of embedded images, which no other figure uses, or the extractor."""
    if (name := extractor_name(measured.config, measured.latents.about.get("image_kind"))) in EMBEDDED:
        return judge_confidence(name, images)
    return seen.logits.double().softmax(1).amax(1)


def measure_reconstruction(measured: Measured, results: Results) -> None:
    """PSNR, SSIM, LPIPS, rFID, all under noise, and midpoints."""
    latents, config = measured.latents, measured.config
    if latents.decode is None:
        raise UserError("bare latents have no decoder")
    rebuilt = reconstruction.decoded(latents.decode, latents.latents)
    results.pictures["images"], results.pictures["reconstructions"] = latents.images[:PICTURES], rebuilt[:PICTURES]
    pairs = mean(reconstruction.psnr_and_ssim(latents.images, rebuilt))
    for place, name in enumerate(("psnr", "ssim")):
        results.figures[name] = Estimate(pairs.value[place].item(), pairs.error[place].item())
    remark_on_data(measured, results)
    _measure_lpips(measured, results, rebuilt)
    noisy = {
        s: reconstruction.decoded(latents.decode, reconstruction.noisy(latents.latents, s))
        for s in sorted(config.noise_shares)
    }
    shares = torch.tensor([0.0, *noisy])
    if noisy:
        each = [mean(reconstruction.psnr_and_ssim(latents.images, images)[:, 0]) for images in noisy.values()]
        results.curve("psnr_noise", shares, _along([results.figures["psnr"], *each]))
        results.pictures[f"noise {max(noisy):g}"] = noisy[max(noisy)][:PICTURES]
    between, _ = midpoints(latents.latents, torch.Generator().manual_seed(config.seed))
    halfway = reconstruction.decoded(latents.decode, between)
    results.pictures["midpoints"] = halfway[:PICTURES]
    try:
        real = extracted(measured, results, latents.images)
    except UserError as error:
        results.leave_out(in_own_words(error), *named_in("reconstruction"))
        return
    remark_on_extractor(measured, results, real)
    results.figures["rfid"] = _distance(measured, extracted(measured, results, rebuilt).fid, real.fid)
    seen = extracted(measured, results, halfway)
    results.figures["midpoint_fid"] = _distance(measured, seen.fid, real.fid)
    results.figures["midpoints_sure"] = mean((confidence(measured, halfway, seen) >= SURE).double())
    if noisy:
        each = {
            s: _distance(measured, extracted(measured, results, images).fid, real.fid) for s, images in noisy.items()
        }
        results.curve("rfid_noise", shares, _along([results.figures["rfid"], *each.values()]))
        if 0.4 in each:
            results.figures["rfid_noise_0.4"] = each[0.4]
    results.leave_out(f"noise_shares={list(config.noise_shares)} does not ask for it", *named_in("reconstruction"))


def remark_on_data(measured: Measured, results: Results) -> None:
    """Say so where the images are of another source than the autoencoder was trained on."""
    trained_on, source = (measured.latents.about.get(name, "") for name in ("trained_on", "source"))
    if trained_on in EMBEDDED and source in EMBEDDED and trained_on != source:
        results.remarks["psnr"] = (
            f"the autoencoder was trained on {trained_on}, and all figures here are of {source}: data.source={trained_on} names its own images"
        )
    elif trained_on not in ("", *EMBEDDED) and source in EMBEDDED:
        results.remarks["psnr"] = (
            f"the autoencoder was trained on images of data.source={trained_on}, and all figures here are of {source}: data.source= and "
            "data.path= name others"
        )


def remark_on_extractor(measured: Measured, results: Results, real: Features) -> None:
    """Say so where the extractor is of other images, or sees in more dimensions than there are images."""
    kind = measured.latents.about.get("image_kind")
    own = bool(measured.config.extractor_weights)
    foreign = "" if own else foreign_images(extractor_name(measured.config, kind), kind or "").partition("; write")[0]
    few = few_images("it", *real.fid.shape)
    for name, told in {
        "rfid": (foreign, few),
        "rfid_noise_0.4": (foreign, few),
        "midpoint_fid": (foreign, few),
        "midpoints_sure": (foreign,),
    }.items():
        if remark := "; ".join(filter(None, told)):
            results.remarks[name] = remark


def _along(estimates: list[Estimate]) -> Estimate:
    """Single figures as those along a curve."""
    values, errors = zip(*estimates)
    return Estimate(torch.tensor(values), torch.tensor(errors))


def _measure_lpips(measured: Measured, results: Results, rebuilt: Tensor) -> None:
    """LPIPS, where VGG's weights are on this machine: nothing is fetched for it."""
    from tokenizer.losses.perceptual import PerceptualLoss, vgg_place

    weights = measured.config.lpips_weights
    if not weights and not vgg_place().is_file():
        results.leave_out(f"VGG-16's weights are not at {vgg_place()}: lpips_weights= names another place", "lpips")
        return
    try:
        distance = PerceptualLoss().load(weights)
    except UserError as error:
        results.leave_out(in_own_words(error), "lpips")
        return
    results.weights["lpips"] = tensors_fingerprint(distance.state_dict())
    pairs = zip(rebuilt.split(BATCH), measured.latents.images.split(BATCH))
    with torch.no_grad():
        results.figures["lpips"] = mean(torch.cat([distance.per_image(*map(to_model, pair)) for pair in pairs]))


def _distance(measured: Measured, features: Tensor, real: Tensor) -> Estimate:
    if features.shape[1] <= WIDE_FEATURES:
        return measured.resample(lambda i: reconstruction.feature_distance(features[i], real[i]), halves=True)
    config = measured.config
    error = bootstrap(
        lambda i: reconstruction.feature_distance_of_few(features[i], real[i]),
        len(features),
        min(config.resamples, WIDE_RESAMPLES),
        config.seed,
        halves=True,
    ).error
    return Estimate(reconstruction.feature_distance(features, real), error)


def measure_semantics(measured: Measured, results: Results) -> None:
    """Classes by neighbours and by a probe; likeness to reference features, which needs no labels."""
    vectors = measured.normalised.flatten(1)
    _measure_classes(measured, vectors, results)
    if measured.latents.images is None:
        results.leave_out("bare latents have no images", "cka", "cknna")
        return
    features = reference_features(measured, results)
    for name, statistic in (("cka", semantics.linear_cka), ("cknna", semantics.cknna)):
        results.figures[name] = measured.resample(
            lambda i, statistic=statistic: statistic(vectors[i], features[i]), halves=True
        )


def _measure_classes(measured: Measured, vectors: Tensor, results: Results) -> None:
    labels = measured.latents.labels
    if labels is None:
        results.leave_out("there are no labels: labels= names a file of them", "knn_accuracy", "probe_accuracy")
        return
    sets = [part for rows in (measured.train, measured.held_out) for part in (vectors[rows], labels[rows])]
    if len(sets[1].unique()) < 2:
        reason = "all training images have one label: there is nothing to tell apart"
        results.leave_out(reason, "knn_accuracy", "probe_accuracy")
        return
    results.figures["knn_accuracy"] = mean(semantics.neighbour_hits(*sets))
    results.figures["probe_accuracy"] = mean(semantics.probe_hits(*sets))


def reference_features(measured: Measured, results: Results) -> Tensor:
    """Pooled features ``(N, d)`` of the images by the timm model that the config names, or else by the extractor; the weights' fingerprint is
    kept."""
    config, images = measured.config, measured.latents.images
    if not config.features:
        return extracted(measured, results, images).fid
    from flowprior.pretrained.timm_encoder import TimmEncoder
    from flowprior.pretrained.timm_models import build_timm

    model = build_timm(config.features, _features_file(config))
    results.weights["features"] = tensors_fingerprint(model.state_dict())
    size = model.pretrained_cfg["input_size"][-1]
    encoder = TimmEncoder(model, "pooled", size).eval()
    with torch.no_grad():
        return torch.cat([encoder(part)[:, 0] for part in images.split(BATCH)])


def _features_file(config: ReportConfig) -> Path:
    from flowprior.pretrained.timm_models import hub_weights

    if config.features_weights:
        return Path(config.features_weights)
    return hub_weights(config.features, "write features_weights=<the file>")


def measure_alignment(measured: Measured, results: Results) -> None:
    """Raw latents against the prior that the config names, if any."""
    config, latents = measured.config, measured.latents.latents
    if not config.prior:
        raise UserError("no prior is named: prior= takes one")
    prior = FlowPrior.from_pretrained(config.prior)
    if prior.channels != latents.shape[2]:
        raise UserError(
            f"the prior {config.prior} is over {prior.channels} channels and these latents have {latents.shape[2]}"
        )
    held = latents[measured.held_out]
    results.figures["alignment_loss"] = mean(alignment.alignment_of_images(prior, held, seed=config.seed))
    samples = prior.sample(PRIOR_SAMPLES, generator=torch.Generator().manual_seed(0))
    results.figures["prior_log_distance"] = mean(alignment.log_distances(samples, held))
    divergence = alignment.divergence_from_prior(
        prior, latents[measured.train], held, config.flow.steps, config.flow.images, config.flow.times, config.seed
    )
    results.figures["prior_divergence"] = mean(divergence)
