"""`optchain train`: a run on handwritten digits, with its record, its checkpoints and its report."""
