"""What members check for themselves, so that the relay need not be trusted (SPEC 12.5, 18). No I/O.

log         a group's log, event by event: who is in it, under which key, and what breaks its rules
rules       what a control event must meet to count       effects     what it changes then
state       what the log has come to                      index       every event that was verified, by seq and by id
findings    what was found wrong, in words for people     keyring     a group's keys, checked against the log
opening     from a verified event to what it says         board       messages with edits, reactions, pins
signals     what is told and never stored
"""
