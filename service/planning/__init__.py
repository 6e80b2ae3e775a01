"""What serving costs before anything is served: arithmetic alone."""
