"""Hostile input for the readers of foreign files: RecordIO, tars and verification sets.

    python -m tests.fuzz --inputs 100000          # all readers, about as many for each
    python -m tests.fuzz --only tar --number 41   # one input again, as a failure report names it

Each input is made from a small valid file by a few mutations, or put together from the format's pieces at random. It
depends on the seed and its number alone. A reader may read it or refuse it with one of the errors that it documents.
Anything else is a failure: another exception, more than `LIMIT_S` for one input, more memory than
`LIMIT_BYTES` above what the process had at its start. Inputs are a few kilobytes, so a reader that believes a claim of
gigabytes meets the limit.
"""
