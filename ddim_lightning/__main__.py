"""``python -m ddim_lightning`` runs the command line."""

from __future__ import annotations

import sys

from ddim_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
