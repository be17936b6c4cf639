"""Stoker's runtime: a blank worker that becomes an instance of a function."""
