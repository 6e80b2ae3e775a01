"""What must hold for any input, searched with hypothesis."""
