"""The command line of BPS-Bench: `bench`, or this file run by Python."""

from __future__ import annotations

import sys

from bench.cli import app

if __name__ == "__main__":
    sys.exit(app(prog_name="bench"))
