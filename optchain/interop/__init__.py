"""Recipes and optimizer state, from other libraries and back."""
