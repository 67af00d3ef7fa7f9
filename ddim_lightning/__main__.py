"""``python -m ddim_lightning`` runs the command line."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # `python -m` looks into the current folder first, where a stray `lightning.py` would run in place of the package.
    if not sys.flags.safe_path:
        sys.path.append(sys.path.pop(0))
    from ddim_lightning.cli.main import main

    sys.exit(main())
