"""Who runs the recipes: each module builds a recipe's closest form in its library."""
