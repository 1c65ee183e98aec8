"""`optchain bench`: recipes side by side with their peers, in one process. The budget tests count with it too."""
