"""Fantail: sixteen classifiers, one reading of the conversation. Importing this package imports nothing else."""
