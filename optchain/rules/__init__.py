"""The rules: what an optimizer makes of the gradient of one array; a paper a file."""
