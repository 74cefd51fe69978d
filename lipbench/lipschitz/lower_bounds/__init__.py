"""Lower bounds with two inputs: pair ascent, Jacobians at points, witnesses."""
