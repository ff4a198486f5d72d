"""Which experts every token went to: in memory, in a file, and counted."""
