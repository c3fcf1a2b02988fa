"""The plugins that attach a virtual machine; one folder is one executable."""
