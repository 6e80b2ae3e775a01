"""Classifier folders to validated classifiers."""
