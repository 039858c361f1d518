"""What a memory is worth: tasks, the methods it is compared with, and the tables and plots of `beacon-memory eval`."""
