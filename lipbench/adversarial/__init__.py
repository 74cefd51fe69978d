"""What attacks are made of: projected ascent, losses, and the judge who trusts nobody."""
