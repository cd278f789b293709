"""Getting data sets onto the disk: download, unpack, place, verify."""
