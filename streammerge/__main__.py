"""`python -m streammerge` is the same as `streammerge`."""

from streammerge.cli import main

main()
