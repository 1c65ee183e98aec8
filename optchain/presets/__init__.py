"""Recipes that people already know, with the arguments they already know and the same numbers."""
