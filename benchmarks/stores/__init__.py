"""What a session costs its store: bytes a token, a turn as the session grows, round trips. `speed.run` runs them."""
