"""The command line: one file a verb, its options and its work together."""
