"""Where encoded images lie, one file for each kind of place: each is an :class:`~flowprior.data.stores.base.ImageStore`."""
