"""A clip to the files that people and programs asked for.

`note` says in words what made the clip; `stream` (MP4, WebM), `gif`, `webp` and `png` turn frames into the bytes of a
file, the same bytes for the same frames; `result` writes them. Nothing but `result` touches a disk.
"""
