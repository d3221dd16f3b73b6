"""Files: where their bytes are kept, and how they get there.

base        what a store of files does; its errors
local       a folder; `files` is how it touches it
s3          a bucket
read_ahead  blocks that are kept, and fetched before they are wanted, because a bucket takes long to answer
guarded     a store with limits of time and number, so that its trouble stays its own
choose      which of them the settings ask for, and whether it is the one that the database speaks of
uploads     files on their way: chunks → parts → store → database → acknowledgements
"""
