"""What a memory is worth, measured by other means than `beacon-memory eval`: next-token loss, right answers."""
