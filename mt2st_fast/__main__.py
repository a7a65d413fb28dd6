"""`python -m mt2st_fast` is `mt2st-fast`."""

from mt2st_fast.cli import main

main()
