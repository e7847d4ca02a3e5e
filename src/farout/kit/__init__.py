"""Parts that two rooms or more use: ranks, sketches, columns, profiles, engines."""
