"""Servers under load: what becomes of turns when one is killed, and of memory when many people talk; what HTTP adds."""
