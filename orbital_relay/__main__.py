"""`python -m orbital_relay` is `orbital-relay`."""

from orbital_relay.cli import main

main()
