"""Command line, settings and the embedded stack: the one place that composes the other packages."""
