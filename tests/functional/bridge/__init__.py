"""What a bridge plugin promises, asked of the installed cnv-bridge and of the reference bridge alike."""
