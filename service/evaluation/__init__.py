"""Answers held against labels: predictions, measures, baselines, calibration, comparison, and the report of it all."""
