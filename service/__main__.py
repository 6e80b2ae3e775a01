"""`python -m service` is the command `fantail`."""

from service.cli import main

main()
