"""Transformations that take others: gates, masks, groups, schedule-free."""
