"""Stock DHCP clients as guests of the real services."""
