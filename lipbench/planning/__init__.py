"""From a configuration to cells, their keys, and stacks. No tensor work."""
