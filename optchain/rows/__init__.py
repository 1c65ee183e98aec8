"""Gradients that name rows: lookups that make them, and updates of the named rows alone."""
