"""The methods BPS is compared with: one file each, named in bench.registry."""
