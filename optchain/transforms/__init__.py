"""The transformations, one feature a file."""
