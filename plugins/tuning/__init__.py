"""cnv-tuning: sysctls and properties of a pod's interface, behind the plugin that makes it in a chain."""
