"""``python -m service.cli``, the same as the command ``autoencoder``."""

from service.cli import main

main()
