"""Give a latent space a shape: flow priors as regularisers ("Aligning Latent Spaces with Flow Priors", arXiv 2506.05240)."""

from flowprior.errors import UserError
from flowprior.flow.online import OnlineFlow, OnlineFlowConfig
from flowprior.flow.prior import FlowPrior
from flowprior.flow.time_grid import TimeGrid
from flowprior.flow.velocity import VelocityMLP

__version__ = "0.1.0"
__all__ = ["FlowPrior", "OnlineFlow", "OnlineFlowConfig", "TimeGrid", "UserError", "VelocityMLP", "__version__"]
