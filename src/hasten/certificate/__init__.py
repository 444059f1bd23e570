"""Statistics of a certificate: pure functions of counts and scores, valid in finite samples."""
