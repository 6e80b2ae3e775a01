"""`make test-faults`: a real server under steady load, one fault after another, and what became of every call."""
