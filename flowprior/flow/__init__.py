"""The method: velocity network, path, losses, ODE solvers, projections, and :class:`~flowprior.flow.prior.FlowPrior`."""
