"""What keeps the project in order; nothing here is served or installed."""
