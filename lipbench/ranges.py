"""Ranges that fields must keep: rules, and the sentences that refuse what breaks them."""

Rule = tuple[bool, str]
"""Whether it holds, and what to say if not; the sentence begins with the key."""


def require(*rules: Rule) -> None:
    """Check all rules, so that a reader of a file can tell all broken ones at once.

    Raises:
        ValueError: If rules are broken; the message has a line for each.
    """
    broken = [text for holds, text in rules if not holds]
    if broken:
        raise ValueError("\n".join(broken))
