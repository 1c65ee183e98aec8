"""What every transformation stands on: the object, the chain, run-time values, trees."""
