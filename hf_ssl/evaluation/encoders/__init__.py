"""What is evaluated: anybody's checkpoint as an encoder of rows to features, a file for each kind of data."""
