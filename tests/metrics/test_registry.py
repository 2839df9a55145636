import subprocess
import sys

import pytest

from flowprior.errors import UserError
from flowprior.metrics.registry import choose_metrics
from flowprior.training.config import build_config
from mar.config import MARStageConfig
from tokenizer.train_ae import AEConfig

SIZES = {"data": {"size": 32}, "model": {"image_size": 32}}


@pytest.mark.parametrize(
    "extractor, reference_images, labels, missing",
    [
        ("digits", True, True, set()),
        ("inception", True, True, {"recognised"}),
        ("digits", False, True, {"precision_recall"}),
        ("digits", True, False, {"recognised"}),
    ],
)
def test_without_names_all_metrics_that_apply_are_chosen(extractor, reference_images, labels, missing):
    chosen = choose_metrics((), extractor, reference_images=reference_images, labels=labels)
    assert set(chosen) == {"fid", "inception_score", "precision_recall", "recognised"} - missing


@pytest.mark.parametrize(
    "values, words",
    [
        ({"extractor": "vgg"}, "'vgg'.*digits, inception"),
        ({"metrics": ["fidd"]}, "'fidd'.*did you mean 'fid'"),
        ({"metrics": ["recognised"], "extractor": "inception"}, "'recognised' goes with the extractor digits"),
        ({"metrics": ["precision_recall"], "reference": "x.npz"}, "'precision_recall' compares single images"),
        ({"reference": "val"}, "reference is data or the path of an .npz"),
        ({"half_half_splits": -1}, "0 or more"),
    ],
)
def test_the_generators_config_refuses_what_cannot_be_measured(values, words):
    with pytest.raises(UserError, match=f"'evaluate'.*{words}"):
        build_config(MARStageConfig, {"evaluate": values})


def test_the_autoencoders_config_refuses_an_unknown_extractor_and_allows_none():
    with pytest.raises(UserError, match="'evaluate'.*'vgg'"):
        build_config(AEConfig, SIZES | {"evaluate": {"extractor": "vgg"}})
    assert build_config(AEConfig, SIZES).evaluate.extractor == ""


def test_the_configs_are_checked_without_torch_fidelity():
    code = "import sys, mar.config; mar.config.EvaluateConfig('digits'); print('torch_fidelity' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
