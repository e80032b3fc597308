"""Tasks for tests, found by their dotted names."""
