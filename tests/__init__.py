"""Tests of Fantail; `tests/support.py` makes their material."""
