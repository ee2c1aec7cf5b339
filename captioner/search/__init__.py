"""Memory → candidates: one search for every decoder."""
