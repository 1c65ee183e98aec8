"""`optchain convert`: a half-trained run from one library's files to another's."""
