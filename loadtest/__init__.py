"""Load and speed, measured from outside: talks to the service through its client alone."""
