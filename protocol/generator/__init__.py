"""What `generate.py` writes: the vectors, the JSON Schema and the AsyncAPI document. Not part of any distribution.

world     fixed people, ids, keys and files, and a group's log that holds every kind of event
examples  every request with its answer, every push, every error
cases     byte strings and what a relay makes of them
crypto    what clients seal among themselves, and what must not open
vectors   all of these as JSON
appendix  the worked examples in SPEC.md
schema    JSON Schema and AsyncAPI, from the structs in `orbital_protocol.frames`
"""
