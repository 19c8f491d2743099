"""Where the bytes of shards come from: files of this machine, or an object store with a cache beside it."""
