"""Files of other tools, read as arrays: what they say is checked before it is believed."""
