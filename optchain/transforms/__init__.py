"""The parts of a recipe around its rule: clipping, decay, the learning rate, averages, projections; a feature a file."""
