"""Tasks: one file each, named in bench.registry."""
