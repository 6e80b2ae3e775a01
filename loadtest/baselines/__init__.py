"""What a user would run instead, each a process of its own that is fed through its standard input."""
