"""What a pool tells its members: the terms under which it may be used, and one announcement at a time."""
