"""Files that are whole or absent: cells on disk, rows, tensors."""
