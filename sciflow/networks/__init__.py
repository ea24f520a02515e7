"""Networks, all with the interface of :class:`sciflow.denoisers.Network`."""
