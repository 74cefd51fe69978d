"""What is measured of a checkpoint: accuracy, noise, attacks, bounds, certificates, claims."""
