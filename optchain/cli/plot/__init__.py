"""`optchain plot`."""
