"""`optchain race`: recipes side by side on small tasks, with seeds and error bars."""
