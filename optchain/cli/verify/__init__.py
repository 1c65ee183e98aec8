"""`optchain verify`."""
