"""The descriptor pool of our own, which all generated modules register with.

`tritonclient`, `kserve` and `mlserver` each put their own package ``inference`` into protobuf's process-wide default
pool, and a second definition there is an error at import. Message classes of a private pool work beside theirs.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool

POOL = descriptor_pool.DescriptorPool()
