"""Refusal: why a network, a norm or a domain is not covered."""


class Refused(Exception):
    """A bound does not understand the network; the message names the layer and the reason."""
