"""What a recipe has around its rule: clipping, decay, the learning rate, averages, projections; a feature a file."""
