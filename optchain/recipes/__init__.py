"""A recipe as data, and as a table."""
