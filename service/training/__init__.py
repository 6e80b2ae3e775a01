"""Labelled conversations to adapters, on the same prompt code as serving."""
