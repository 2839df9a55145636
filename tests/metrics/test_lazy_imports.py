import subprocess
import sys

import pytest

import flowprior.metrics


def test_importing_the_package_loads_no_heavy_library():
    heavy = ("faiss", "torch_fidelity", "torchmetrics", "timm", "torch._dynamo")
    code = f"import sys, flowprior, flowprior.metrics; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in flowprior.metrics.__all__:
        assert getattr(flowprior.metrics, name) is not None
    with pytest.raises(AttributeError):
        _ = flowprior.metrics.no_such_name
