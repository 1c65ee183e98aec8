"""Recipes and optimizer state, from other libraries and back.

What is the same for all is written once: `links` finds the links of a recipe, `mapping` says which parameter is which, `checks`
what a value must be, `merging` puts it in its place, `report` says what became of it. A library has a folder with what is its own:

    recipes.py      its optimizers as our recipes, and back
    rules.py        its words for the entries of our states
    state.py        its state as entries by their paths, which `merging` takes
    export.py       its state, made of ours

and beside them what reads its files and its parameters.
"""
