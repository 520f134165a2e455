"""What is on disk: files that are whole or not there, hashes, checkpoints.

`from protojax.storage import checkpoint` brings the checkpoints; that module is not
imported here, because Orbax takes its time.
"""

from protojax.storage.files import (
    atomic,
    atomic_folder,
    atomic_path,
    fingerprint,
    hash_arrays,
    hash_file,
    hash_json,
    remove_leftovers,
    set_aside,
    write_json,
)

__all__ = [
    "atomic",
    "atomic_folder",
    "atomic_path",
    "fingerprint",
    "hash_arrays",
    "hash_file",
    "hash_json",
    "remove_leftovers",
    "set_aside",
    "write_json",
]
