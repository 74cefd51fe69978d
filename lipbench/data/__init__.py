"""Data sets on disk and on a device: found, read, checked, downloaded and split."""
