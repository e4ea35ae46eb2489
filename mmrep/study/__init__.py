"""Paired comparisons of poolings: plan, runner, statistics, report."""
