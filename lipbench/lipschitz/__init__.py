"""Bounds of Lipschitz constants: the bracket, the recheck of every proof, certified radii."""
