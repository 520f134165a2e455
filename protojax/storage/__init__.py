"""Storage on disk: files written whole or not at all, hashes, checkpoints.

`from protojax.storage import checkpoint` imports the checkpoints; that module is not
imported here, because Orbax is slow to import.
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
