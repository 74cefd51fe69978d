"""LipSDP and its relatives: multipliers that certify an l2 bound."""
