"""Client for Orbital relays.

wire        connections, requests, events: of bytes that others have sealed
crypto      what is sealed under which key, as pure functions
identity    a user's keys                                links       invite links
files       private files, replaced whole                errors      all that is raised
"""
