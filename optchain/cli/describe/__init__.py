"""`optchain describe`."""
