"""Where sets come from: shards, folders, annotation files; what their samples are and what is wrong with them."""
