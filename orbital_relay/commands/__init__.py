"""What `orbital-relay` can do beside serving, a module for each subject. `orbital_relay/cli.py` puts them together.

A command works on the operator's database, or on the embedded one whether a relay runs on it or not (`database.py`).
"""
