"""Refusal: why a network, a norm or a domain is not covered."""


class Refused(Exception):
    """A network, a norm or a domain is not covered; the message names what and why.

    Where a layer has no rule, it names the layer.
    """


def too_many(count: int, what: str, most: int) -> str | None:
    """Return the refusal of a network that has more of something than a field allows, or None.

    Args:
        count: How many there are.
        what: What is counted, as in the field's name: "neurons" for `most_neurons`.
        most: The field's value.
    """
    if count <= most:
        return None
    return f"it has {count} {what}, more than the {most} of most_{what}."
