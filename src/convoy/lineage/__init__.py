"""Follow a result back to its commit, data and params, and forward to what came of it; say what would rerun."""
