"""Statistics of a certificate: pure functions of counts and scores, each valid in finite samples."""
