"""Proof: exhibits that anyone can read, check and make again, and the register of their hashes."""
