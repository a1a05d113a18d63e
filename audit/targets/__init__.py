"""What is audited: text-to-image models behind one contract."""
