"""Provide small tools for all other packages. They do not depend on speech or models.

errors       `FedexitError`: a mistake that the user can fix
extras       packages that are optional, and the extra that brings them
paths        the folders of the project
files        hashes, and files and folders that are written completely or not at all
locks        one process at a time on a file or folder
tensors      files of tensors with a checksum
arrays       raw files of numbers with a record of their checksum
checkpoints  the state of an interrupted run
cache        the size limit of the cache on disk
streams      named random streams
settings     dataclasses whose fields are checked
checks       checks of plain values
processes    jobs side by side, in processes of one thread each
sharing      tensors that processes share
progress     progress bars
reads        the record of what a notebook reads
"""
