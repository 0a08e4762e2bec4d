"""``python -m advbench``."""

from advbench.cli.app import main

if __name__ == "__main__":
    main()
