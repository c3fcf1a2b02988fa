"""What guests can and cannot say: crafted frames and honest traffic through guarded ports."""
