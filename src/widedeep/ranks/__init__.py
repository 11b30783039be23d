"""One model over several processes: lanes, row shards and what the ranks exchange."""
