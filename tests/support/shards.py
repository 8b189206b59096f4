"""A whole shard in one call."""

from models.media.shards import END, write_members


def write_shard(path, clips):
    """Write (key, metadata, arrays) of each clip; return {key: {array name: (offset, size)}}."""
    with path.open("wb") as file:
        places = {key: write_members(file, key, metadata, arrays) for key, metadata, arrays in clips}
        file.write(END)
    return places
